"""How a matrix's weights become codes: what a caller asks for, and what a segment then has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import BLOCKS, MOST_SHIFT, WIDTHS

ScaleKind = Literal[0, 1, 2]


@dataclass(frozen=True)
class Recipe:
    """None leaves a choice to `scales.settle`, which makes it for the whole matrix."""

    bits: int
    block: int = 128
    outliers: float = 0.005  # the fraction of the weights that get a correction; none at 8 bits
    zeros: bool | None = None  # a zero point for every block
    half: bool | None = None  # codes lie half a step beside their zero point
    scale_kind: ScaleKind = 0
    shift: int | None = None  # an outlier's correction counts in steps of 2^-shift
    damping: float = 0.01  # of the hessian's mean diagonal, added to its diagonal

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ExportError(f"{self.bits} bits were asked for: a weight has one of {WIDTHS}")
        if self.block not in BLOCKS:
            raise ExportError(f"blocks of {self.block} were asked for: one of {BLOCKS} is needed")
        if not 0 <= self.outliers <= 0.25:
            raise ExportError(f"outliers are a fraction from 0 to 0.25, not {self.outliers}")
        if self.shift is not None and not 0 <= self.shift <= MOST_SHIFT[self.bits]:
            raise ExportError(
                f"the shift at {self.bits} bits is at most {MOST_SHIFT[self.bits]},"
                f" not {self.shift}"
            )
        if self.half and (self.bits == 8 or self.shift == 0):
            raise ExportError("a centre between two codes needs a shift of 1 or more")
        if not self.damping > 0:
            raise ExportError(f"the damping is more than 0, not {self.damping}")

    @property
    def most_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def middle(self) -> float:
        """The zero point of a block that has none of its own."""
        return (1 << (self.bits - 1)) - (0.5 if self.half else 0.0)

    @property
    def corrected(self) -> float:
        """The fraction of outliers that there will be."""
        return 0.0 if self.bits == 8 else self.outliers
