"""What the function bodies of packed weights look up, where computing it would take many nodes: the
time in which ONNX Runtime opens a graph follows their number."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.custom_ops.packed_codes import PIECES, QUADS
from edgewright.custom_ops.packed_layout import WIDTHS

_WIDEST = max(WIDTHS)


def _tensor(values: object, dtype: type[np.generic]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values, dtype))


def _word(number: int, times: int = 1) -> NDArray[np.int64]:
    """The header's bytes, times these, sum up to one of its words."""
    row = np.zeros((16, 4), np.int64)
    row[number] = times * 256 ** np.arange(4)
    return row.reshape(-1)


# What PackedHeader takes from the header: (its bytes times these + this) / this * this.
_E, _N, _K, _B, _COUNT, _FLAGS = range(2, 8)
_FACTS: Mapping[str, tuple[NDArray[np.int64], int, int, int]] = {
    "matrices": (_word(_E), 0, 1, 1),
    "rows": (_word(_N), 0, 1, 1),
    "columns": (_word(_K), 0, 1, 1),
    "block": (_word(_B), 0, 1, 1),
    "flags": (_word(_FLAGS), 0, 1, 1),
    "flags from bit 1 on": (_word(_FLAGS), 0, 2, 1),
    "has a column order": (_word(_FLAGS), 0, 4, 1),
    "groups of 32 columns": (_word(_K), 31, 32, 1),
    "chunks of 64": (_word(_K), 63, 64, 1),
    "bytes of column scales": (_word(_K, 2), 63, 64, 64),
    "bytes of the column order": (_word(_K, 4), 63, 64, 64),
    "where the table of segments ends": (_word(_COUNT, 16), 64, 1, 1),
    "where the sections begin": (_word(_COUNT, 16), 127, 64, 64),
    "bytes of the blob": (_word(8) + _word(9, 1 << 32), 0, 1, 1),
    "bytes of the outliers' list": (_word(10, 2), 63, 64, 64),
}
FACTS_OF_BYTES = _tensor(np.stack([row for row, *_ in _FACTS.values()], 1), np.int64)
FACTS_ADD, FACTS_DIVIDE, FACTS_TIMES = (
    _tensor([fact[i] for fact in _FACTS.values()], np.int64) for i in (1, 2, 3)
)
# Others are divided by these, and a damaged weight may say 0.
FACTS_LEAST = _tensor(
    [name in ("matrices", "block", "groups of 32 columns") for name in _FACTS], np.int64
)


def _layers(bits: int) -> NDArray[np.float64]:
    """[layers * 8, 3] the first piece of each quad, then the second of each and so on: its vector,
    its bits in that, and what those are to be multiplied by. A quad may have less of them."""
    of_quads = [[piece for piece in PIECES[bits] if piece.quad == quad] for quad in range(QUADS)]
    layers = np.zeros((max(map(len, of_quads)), QUADS, 3))
    for quad, pieces in enumerate(of_quads):
        for layer, piece in enumerate(pieces):
            mask = ((1 << piece.count) - 1) << piece.at
            layers[layer, quad] = piece.vector, mask, 2.0 ** (piece.low - piece.at)
    return layers.reshape(-1, 3)


_PIECES = {bits: _layers(bits) for bits in WIDTHS}
_ALL_PIECES = np.concatenate(list(_PIECES.values()))
PIECE_VECTORS = _tensor(_ALL_PIECES[:, 0], np.int64)
PIECE_MASKS = _tensor(_ALL_PIECES[:, 1:2], np.uint8)  # [n, 1]
PIECE_FACTORS = _tensor(_ALL_PIECES[:, 2], np.float32)
# By width, of which the others have none: its pieces, from the first to before the last.
_COUNTS = np.array([len(_PIECES.get(bits, ())) for bits in range(_WIDEST + 1)])
PIECES_END = _tensor(np.cumsum(_COUNTS), np.int64)
PIECES_BEGIN = _tensor(np.cumsum(_COUNTS) - _COUNTS, np.int64)

# The middle code of each width, and what one of a code comes to with each shift.
MIDDLES = _tensor([1 << max(bits - 1, 0) for bits in range(_WIDEST + 1)], np.float32)
UNITS = _tensor([1, 2, 4, 8], np.float32)


def _scales() -> NDArray[np.float64]:
    """[SCALE_KINDS, 256, 2] a, m: a scale of bytes l and h is a[h] * max(m[h] + l / 2, l)."""
    h = np.arange(256)
    sign = np.where(h < 128, 1.0, -1.0)
    # One byte is its own high byte; l / 2 never exceeds l.
    codes = np.ones(256), np.zeros(256)
    # Of a float16, h has the exponent: 2^(e - 15) * (1 + top / 4 + l / 1024), or subnormal.
    e, top = h // 4 % 32, h % 4
    half_a = np.where(e > 0, np.exp2(e - 24.0), np.where(top > 0, 2.0**-23, 2.0**-24))
    half_a[e == 31] = np.inf
    half_m = np.where(e > 0, 512.0 + 128 * top, 128.0 * top)
    # A bfloat16's exponent ends with the first bit of l: from 128 on, it is l that is more.
    e = h % 128
    brain_a = np.exp2(2.0 * e - 133)
    brain_m = np.where(e > 0, 64.0, 0.0)
    kinds = codes, (sign * half_a, half_m), (sign * brain_a, brain_m)
    return np.stack([np.stack(kind, -1) for kind in kinds])


_SCALES = _scales()
SCALE_FACTORS, SCALE_SUMMANDS = (_tensor(_SCALES[..., i].reshape(-1), np.float32) for i in (0, 1))

# The numbers of a chunk's outliers.
NUMBERS = _tensor(np.arange(255), np.int64)
