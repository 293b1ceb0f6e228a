"""What a session knows after some tokens, as one immutable value that can be resumed."""

from __future__ import annotations

from dataclasses import dataclass

from edgewright.runtime.ort import Array


@dataclass(frozen=True)
class State:
    """`arrays` follow the layout and hold the used part only; `tokens` are what led here, by row.

    `fingerprint` names the graph and layout, so that no other package resumes it.
    """

    fingerprint: str
    tokens: tuple[tuple[int, ...], ...]
    arrays: tuple[Array, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(row) for row in self.tokens)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)
