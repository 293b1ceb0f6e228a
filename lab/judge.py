"""What an environment answered and what it should have goes in; a row of the table comes out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from lab.case import Array, PackageAnswer, difference
from lab.models import Reference


@dataclass(frozen=True)
class Row:
    """`wrong` is why a case failed. `error` and `allowed`: how far the logits are, and may be, away
    from the reference's, over the greater of one and their deviation. Of `tokens`, `agreed` were
    chosen as the reference chooses before the first that was not."""

    environment: str
    model: str
    weights: str
    variant: str
    wrong: str = ""
    nodes: int = 0
    error: float = 0.0
    allowed: float = 0.0
    agreed: int = 0
    tokens: int = 0
    open_seconds: float = 0.0
    compiled_bytes: int = 0
    compile_seconds: float = 0.0


@dataclass
class Report:
    """Of one environment; `not_run` is the reason, where there is one."""

    environment: str
    not_run: str = ""
    rows: list[Row] = field(default_factory=list)


def judged(row: Row, answer: PackageAnswer, wanted: Reference) -> Row:
    """`row` has the names of things."""
    row = replace(row, allowed=wanted.allowed)
    if answer.error or answer.logits is None:
        return replace(row, wrong=answer.error or "there are no logits")
    if row.variant == "cpu" and not answer.measured.get("native_kernels"):
        return replace(row, wrong="our kernels did not run")
    told = replace(
        row,
        nodes=sum(len(ops) for ops in answer.nodes.values()),
        error=difference({"logits": answer.logits}, {"logits": wanted.logits}),
        agreed=_agreed(answer.tokens, wanted.tokens),
        tokens=len(wanted.tokens),
        open_seconds=answer.measured.get("open_seconds", 0.0),
    )
    if not told.error <= row.allowed:
        wrong = f"{told.error:.1e} away from what is right; {row.allowed:.1e} may be"
        return replace(told, wrong=wrong)
    if _chose_otherwise(answer.logits, wanted.logits, row.allowed):
        return replace(told, wrong="chose another token where that error cannot change the choice")
    return told


def _agreed(found: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    pairs = zip(found, wanted, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(wanted))


def _chose_otherwise(found: Array, wanted: Array, within: float) -> bool:
    best = np.sort(wanted, axis=-1)[:, -2:]
    sure = best[:, 1] - best[:, 0] > within * max(1.0, float(wanted.std()))
    return bool((found.argmax(-1) != wanted.argmax(-1))[sure].any())
