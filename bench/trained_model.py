"""A recipe goes in; a model trained by it comes out, from the cache if it was trained before.

    python bench/trained_model.py [--threads 2]

Prints the checkpoint's folder, below the user's cache under a hash of the recipe and of its text:
the standard library without the modules that model/training/corpus.py holds out by name. A run that
was killed goes on where it last saved, every seven minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from edgewright.artifacts.user_dirs import cache_dir
from edgewright.model.training.corpus import STDLIB, Corpus, read_corpus
from edgewright.model.training.recipe import Recipe
from edgewright.model.training.trainer import RECORD_FILE, STATE_FILE, Step, Trainer

# A llama of 11.0M parameters; 5.5M tokens: about 40 minutes on 2 cores that do nothing else.
RECIPE = Recipe(
    steps=900,
    seed=1,
    architecture="llama",
    precision="bfloat16",
    vocabulary=4096,
    hidden=384,
    layers=6,
    heads=6,
    kv_heads=2,
    intermediate=1024,
    context=512,
    batch_rows=12,
)
SAVE_SECONDS = 400.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(trained_model(RECIPE))


def trained_model(recipe: Recipe) -> Path:
    corpus = read_corpus([STDLIB])
    folder = cache_dir() / "trained" / recipe_hash(recipe, corpus)
    if (folder / RECORD_FILE).is_file():
        return folder
    if (folder / STATE_FILE).is_file():
        trainer = Trainer.resume(folder, corpus)
    else:  # killed before it saved anything
        shutil.rmtree(folder, ignore_errors=True)
        trainer = Trainer.start(folder, recipe, corpus)
    trainer.run(_report, SAVE_SECONDS)
    return folder


def recipe_hash(recipe: Recipe, corpus: Corpus) -> str:
    described = json.dumps([asdict(recipe), corpus.sha256], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _report(step: Step) -> None:
    if step.held_out is None and step.step % 20:
        return
    held_out = "" if step.held_out is None else f"  held out {step.held_out:.3f}"
    print(
        f"{step.share:6.1%}  step {step.step:,}  {step.tokens / 1e6:.2f}M tokens"
        f"  {step.tokens_per_second:,.0f}/s  loss {step.loss:.3f}{held_out}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
