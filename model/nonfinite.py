"""Bytes of a float tensor in, how many of its values are NaN or infinite out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgewright.model.lazy import Dtype

# Of each dtype: unsigned and signed integers of its width, and the bits of its infinity. Values
# whose exponent is all ones lie at or above infinity, as integers, for either sign.
_BITS: dict[Dtype, tuple[npt.DTypeLike, npt.DTypeLike, int]] = {
    "float32": (np.uint32, np.int32, 0x7F80_0000),
    "float16": (np.uint16, np.int16, 0x7C00),
    "bfloat16": (np.uint16, np.int16, 0x7F80),
}
_BLOCK = 1 << 16


def count_nonfinite(piece: bytes | bytearray | memoryview, dtype: Dtype) -> int:
    """Two maxima decide a clean piece, at memory speed; only a dirty one is counted, in blocks."""
    unsigned, signed, infinity = _BITS[dtype]
    values = np.frombuffer(piece, dtype=unsigned)
    if values.size == 0:
        return 0
    negative_infinity = infinity | 1 << (8 * values.itemsize - 1)
    if values.max() < negative_infinity and values.view(signed).max() < infinity:
        return 0
    count = 0
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK] & infinity
        count += int(np.count_nonzero(block == infinity))
    return count
