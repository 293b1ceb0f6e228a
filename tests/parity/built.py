"""A zoo entry's package, and beside it what transformers computes for it; each is built once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

from edgewright.artifacts.claims import claimed
from edgewright.export import export_checkpoint
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
            np.savez(partial, **expectations(name, built.checkpoint))
            partial.rename(built.expected)
    return built


def expectations(name: str, checkpoint: Path) -> dict[str, np.ndarray]:
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
    arrays["greedy.tokens"] = np.array(_greedy(name, checkpoint, prompt))
    return arrays


def _chunked(length: int) -> dict[str, list[int]]:
    half = length // 2
    sevens = [b - a for a, b in pairwise([*range(0, length, 7), length])]
    return {
        "in_sevens": sevens,
        "one_by_one": [1] * length,
        "resumed": [half, *[1] * (length - half)],
    }


def _greedy(name: str, checkpoint: Path, prompt: list[int]) -> list[int]:
    """Token by token: each from an uncached forward of everything before it, or where the zoo's
    rule makes a cached run the reference, all from one such run."""
    cached = zoo.ENTRIES[name].original_length is not None
    model = zoo.reference_model(checkpoint)
    cache = DynamicCache(config=model.config) if cached else None
    ids, fed = list(prompt), 0
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            step = torch.tensor([ids[fed:]])
            logits = model(step, past_key_values=cache, use_cache=cached).logits
            fed = len(ids) if cached else 0
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]
