"""Holds a package to transformers' numbers: python check_package.py PACKAGE EXPECTED.npz

It needs what a device has: numpy and the runtime. The last line it prints is `ok` or what failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgewright.runtime import Session

TOLERANCE = 1e-4  # max absolute difference over max(1, std of the logits), for every model
CHUNK = 7

Array = np.ndarray


def at_once(session: Session, ids: list[int]) -> Array:
    return session.logits(ids, chunk=len(ids))


def in_sevens(session: Session, ids: list[int]) -> Array:
    return session.logits(ids, chunk=CHUNK)


def one_by_one(session: Session, ids: list[int]) -> Array:
    session.reset()
    first = session.prefill([ids[:1]])
    return np.concatenate([first, *(session.decode([token]) for token in ids[1:])])


def resumed(session: Session, ids: list[int]) -> Array:
    """From half way on; what happens between snapshot and resume must leave no mark."""
    half = len(ids) // 2
    session.reset()
    session.prefill([ids[:half]])
    state = session.snapshot()
    session.decode([ids[0]])
    session.reset()
    session.resume(state)
    return np.concatenate([session.decode([token]) for token in ids[half:]])


SCHEDULES: dict[str, Callable[[Session, list[int]], Array]] = {
    "at_once": at_once,
    "in_sevens": in_sevens,
    "one_by_one": one_by_one,
    "resumed": resumed,
}


def error(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / max(1.0, float(expected.std())))


def check(session: Session, expected: dict[str, Array]) -> list[str]:
    """What is wrong with the package, a line each."""
    wrong = []
    for length in expected["lengths"].tolist():
        ids = expected[f"{length}.ids"].tolist()
        for name, run in SCHEDULES.items():
            if length == 1 and name != "at_once":
                continue
            truth = expected.get(f"{length}.{name}", expected[f"{length}.at_once"])
            found = run(session, ids)
            apart = error(found, truth[-len(found) :])
            if not apart <= TOLERANCE:
                wrong.append(f"{length} tokens {name}: error {apart:.3g}")
    return wrong + check_batch(session, expected) + check_greedy(session, expected)


def check_batch(session: Session, expected: dict[str, Array]) -> list[str]:
    """Rows of different lengths, decoded on together, are the single runs."""
    rows = [expected[f"{n}.ids"].tolist() for n in expected["lengths"].tolist()]
    singles = [session.generate(row, max_new_tokens=6, stop_ids=()) for row in rows]
    together = session.generate(rows, max_new_tokens=6, stop_ids=())
    wrong = [] if together == singles else [f"batch: {together} is not {singles}"]
    twin = session.fork()
    twin.reset()
    alone = []
    for row in rows:
        twin.reset()
        alone.append(np.stack([twin.prefill([row])[0], twin.decode([5])[0]]))
    batch = session.fork()
    batch.reset()
    found = np.stack([batch.prefill(rows), batch.decode([5] * len(rows))], axis=1)
    worst = max(error(a, b) for a, b in zip(found, alone, strict=True))
    return wrong if worst <= TOLERANCE else [*wrong, f"batch: error {worst:.3g}"]


def check_greedy(session: Session, expected: dict[str, Array]) -> list[str]:
    prompt, tokens = expected["greedy.prompt"].tolist(), expected["greedy.tokens"].tolist()
    found = session.generate(prompt, max_new_tokens=len(tokens), stop_ids=())
    return [] if found == tokens else [f"greedy: {found} is not {tokens}"]


def main(package: str, expected: str) -> int:
    with np.load(Path(expected), allow_pickle=False) as stored:
        wrong = check(Session.open(package), dict(stored))
    heavy = sorted({"torch", "onnx", "transformers"} & set(sys.modules))
    wrong += [f"{name} was imported" for name in heavy]
    print("\n".join(wrong) or "ok")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
