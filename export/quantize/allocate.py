"""What each part of each weight costs at each width, in bytes and in loss, and a budget go in; the
width of every part comes out.

Each part's choices are thinned to the lower convex hull of loss over bytes. The steps along the
hulls are then taken in the order of what they save per byte, until the budget is spent; what is
left buys smaller steps, and at last a step for a share of a part's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgewright.artifacts.errors import ExportError

_STRIP = 16  # rows that can have a width of their own


@dataclass(frozen=True)
class Choice:
    bits: int
    outliers: float
    zeros: bool = False


@dataclass(frozen=True)
class Price:
    choice: Choice
    bytes: float
    loss: float


@dataclass(frozen=True)
class Part:
    """Rows of one weight that get one width, and what each choice costs them."""

    key: str  # of the weight's group
    rows: int
    prices: tuple[Price, ...]


@dataclass(frozen=True)
class Share:
    """So many rows with this choice; a part has one of them, or two."""

    key: str
    rows: int
    choice: Choice


def allocate(parts: Sequence[Part], budget_bytes: float) -> list[Share]:
    """In the order of the parts. The bytes of the shares are at most the budget."""
    hulls = [_hull(part.prices) for part in parts]
    least = sum(hull[0].bytes for hull in hulls)
    if least > budget_bytes:
        raise Unmet(least)
    at = [0] * len(parts)
    left = budget_bytes - least
    steps = sorted(
        (-_slope(hull[i], hull[i + 1]), index, i)
        for index, hull in enumerate(hulls)
        for i in range(len(hull) - 1)
    )
    missed: list[tuple[int, int]] = []
    for _, index, i in steps:
        size = hulls[index][i + 1].bytes - hulls[index][i].bytes
        if at[index] == i and size <= left:
            at[index] += 1
            left -= size
        elif at[index] == i:
            missed.append((index, i))
    split = _split(parts, hulls, missed, at, left)
    return [
        share
        for index, part in enumerate(parts)
        for share in _shares(part, hulls[index], at[index], split.get(index, 0))
    ]


class Unmet(ExportError):
    """Even the fewest bits are too many; `least_bytes` is what they take."""

    def __init__(self, least_bytes: float) -> None:
        super().__init__(f"at least {least_bytes:.0f} bytes are needed")
        self.least_bytes = least_bytes


def _hull(prices: Sequence[Price]) -> list[Price]:
    """From the fewest bytes on, each worth more of its extra bytes than the next."""
    found: list[Price] = []
    for price in sorted(prices, key=lambda p: (p.bytes, p.loss)):
        if found and price.loss >= found[-1].loss:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], price):
            found.pop()
        found.append(price)
    return found


def _slope(a: Price, b: Price) -> float:
    """What is saved per byte."""
    return (a.loss - b.loss) / max(b.bytes - a.bytes, 1e-9)


def _split(
    parts: Sequence[Part],
    hulls: Sequence[Sequence[Price]],
    missed: Sequence[tuple[int, int]],
    at: Sequence[int],
    left: float,
) -> dict[int, int]:
    """How many of a part's first rows take the step that was too large for all of them."""
    found: dict[int, int] = {}
    for index, i in missed:
        size = hulls[index][i + 1].bytes - hulls[index][i].bytes
        rows = int(parts[index].rows * left / size) // _STRIP * _STRIP
        if at[index] == i and index not in found and 0 < rows < parts[index].rows:
            found[index] = rows
            left -= size * rows / parts[index].rows
    return found


def _shares(part: Part, hull: Sequence[Price], at: int, first: int) -> list[Share]:
    rest = Share(part.key, part.rows - first, hull[at].choice)
    if not first:
        return [rest]
    return [replace(rest, rows=first, choice=hull[at + 1].choice), rest]
