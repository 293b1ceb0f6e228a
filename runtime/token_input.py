"""Whatever a caller passes as token ids goes in; checked rows of int64 come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError

Ids = NDArray[np.int64]
TokenRow = Sequence[int] | NDArray[np.integer]
TokenRows = TokenRow | Sequence[TokenRow]


def is_batch(prompt: TokenRows | str | Sequence[str]) -> bool:
    """Whether this is several rows, or several texts, rather than one."""
    if isinstance(prompt, str):
        return False
    if (axes := getattr(prompt, "ndim", None)) is not None:  # an array, or another library's
        return bool(axes > 1)
    if not isinstance(prompt, Sequence):
        raise SessionError(
            f"a prompt is token ids or text, or several of either; found {type(prompt).__name__}"
        )
    return len(prompt) > 0 and isinstance(prompt[0], Sequence | np.ndarray)


def parse_rows(ids: TokenRows, lengths: Sequence[int] | None, vocab_size: int) -> list[Ids]:
    """One array a row. `lengths` cuts the right padding off the rows of a rectangle."""
    rows: Sequence[TokenRow] = list(ids) if is_batch(ids) else [ids]  # type: ignore[list-item, arg-type]
    if not rows:
        raise SessionError("the batch has no rows; at least one is required")
    if lengths is not None:
        rows = _cut(rows, lengths)
    return [parse_row(row, vocab_size) for row in rows]


def _cut(rows: Sequence[TokenRow], lengths: Sequence[int]) -> list[TokenRow]:
    wanted = _integers(lengths, "lengths").tolist()
    if len(wanted) != len(rows):
        raise SessionError(f"{len(wanted)} lengths for {len(rows)} rows; one a row is required")
    for row, length in zip(rows, wanted, strict=True):
        if not 0 <= length <= len(row):
            raise SessionError(f"a length of {length} for a row of {len(row)} tokens")
    return [row[:length] for row, length in zip(rows, wanted, strict=True)]


def parse_row(row: TokenRow, vocab_size: int) -> Ids:
    ids = _integers(row, "token ids")
    wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if wrong.size:
        position = int(wrong[0])
        raise SessionError(
            f"token {ids[position]} at position {position} is outside the vocabulary; "
            f"ids from 0 to {vocab_size - 1} are required"
        )
    return ids.astype(np.int64)


def _integers(values: object, what: str) -> NDArray[np.integer]:
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):  # rows within a row
        raise SessionError(f"{what} must be one row of whole numbers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        found = f"shape {list(array.shape)}" if array.ndim != 1 else f"{array.dtype} values"
        raise SessionError(f"{what} must be one row of whole numbers; found {found}")
    return array.astype(np.int64) if array.size == 0 else array


def check_at_least_one(name: str, value: object, unit: str = "") -> int:
    """A caller's whole number, which may be numpy's."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        wanted = f"at least 1 {unit}".rstrip()
        raise SessionError(f"{name} is {value!r}; {wanted} is required")
    return int(value)
