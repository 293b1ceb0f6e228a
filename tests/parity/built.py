"""A zoo entry's package, and beside it what transformers computes for it; each is built once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from edgewright.artifacts.claims import claimed
from edgewright.export import export_checkpoint
from edgewright.runtime import Session
from tests import model_zoo as zoo

LENGTHS = (1, 17, 300)
GREEDY_PROMPT, GREEDY_TOKENS = 17, 64


@dataclass(frozen=True)
class Built:
    checkpoint: Path
    package: Path
    expected: Path  # for check_package.py


def build(name: str, shared: Path) -> Built:
    """Other test processes share the folder and wait for whoever came first."""
    folder = shared / name
    folder.mkdir(parents=True, exist_ok=True)
    built = Built(folder / f"{name}-float32", folder / "package", folder / "expected.npz")
    with claimed(folder):
        if not built.expected.exists():
            assert zoo.write_checkpoint(name, folder) == built.checkpoint
            export_checkpoint(built.checkpoint, built.package)
            partial = folder / "partial.npz"
            np.savez(partial, **expectations(name, built))
            partial.rename(built.expected)
    return built


def expectations(name: str, built: Built) -> dict[str, np.ndarray]:
    checkpoint = built.checkpoint
    arrays: dict[str, np.ndarray] = {"lengths": np.array(LENGTHS)}
    original = zoo.ENTRIES[name].original_length
    for length in LENGTHS:
        ids = zoo.prompt(name, length)
        arrays[f"{length}.ids"] = np.array(ids)
        arrays[f"{length}.at_once"] = zoo.reference_logits(checkpoint, ids).numpy()
        if original is not None and length > original:
            for schedule, chunks in _chunked(length).items():
                logits = zoo.expected_logits(name, checkpoint, ids, chunks)
                arrays[f"{length}.{schedule}"] = logits.numpy()
    prompt = zoo.prompt(name, GREEDY_PROMPT)
    arrays["greedy.prompt"] = np.array(prompt)
    arrays["greedy.tokens"] = np.array(_greedy(name, built, prompt))
    return arrays


def _chunked(length: int) -> dict[str, list[int]]:
    half = length // 2
    sevens = [b - a for a, b in pairwise([*range(0, length, 7), length])]
    return {
        "in_sevens": sevens,
        "one_by_one": [1] * length,
        "resumed": [half, *[1] * (length - half)],
    }


def _greedy(name: str, built: Built, prompt: list[int]) -> list[int]:
    """transformers' greedy tokens: each of an uncached forward over everything before it, or where
    the zoo's rule makes a cached run the reference, all of one such run."""
    model = zoo.reference_model(built.checkpoint)
    if zoo.ENTRIES[name].original_length is not None:
        return _greedy_of_cached_run(model, prompt)
    ids, goal = list(prompt), len(prompt) + GREEDY_TOKENS
    session = Session.open(built.package)
    while len(ids) < goal:
        # Ours only guess, so that one forward judges many: up to the first that transformers would
        # not choose, and there its own is taken.
        guesses = session.generate(ids, max_new_tokens=goal - len(ids), stop_ids=())
        with torch.no_grad():
            logits = model(torch.tensor([ids + guesses]), use_cache=False).logits[0]
        chosen = logits[len(ids) - 1 : -1].argmax(-1).tolist()
        apart = (np.array(chosen) != np.array(guesses)).nonzero()[0]
        ids += chosen[: int(apart[0]) + 1 if len(apart) else None]
    return ids[len(prompt) :]


def _greedy_of_cached_run(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    cache, found, step = DynamicCache(config=model.config), list[int](), prompt
    with torch.no_grad():
        while len(found) < GREEDY_TOKENS:
            logits = model(torch.tensor([step]), past_key_values=cache, use_cache=True).logits
            step = [int(logits[0, -1].argmax())]
            found += step
    return found
