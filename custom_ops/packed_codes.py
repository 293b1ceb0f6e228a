"""Codes of 2 to 8 bits go in, vectors of 64 bytes that a kernel unpacks with a few shifts come out,
and back. docs/packed-weights.md draws the bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewright.custom_ops.packed_layout import GROUP, ROWS_OF_STRIP, WIDTHS

Bytes = NDArray[np.uint8]

QUADS = GROUP // 4
_EVERY_BYTE = 0x0101010101010101
_WORDS = 8  # of 8 bytes, in a vector


@dataclass(frozen=True)
class Piece:
    """Bits `low` and up, `count` of them, of a quad's codes are a vector's bits `at` and up."""

    quad: int
    low: int
    count: int
    vector: int
    at: int


def _pieces(bits: int) -> tuple[Piece, ...]:
    every = range(QUADS)
    match bits:
        case 3:  # two quads a vector; the last two quads in what these leave
            return (
                *(Piece(i, 0, 3, i // 2, 3 * (i % 2)) for i in range(6)),
                *(Piece(i, 0, 2, i - 6, 6) for i in (6, 7)),
                *(Piece(i, 2, 1, 2, i) for i in (6, 7)),
            )
        case 5:  # as four bits, and a vector of fifth bits
            return (*_pieces(4), *(Piece(i, 4, 1, 4, i) for i in every))
        case 6:  # three vectors hold three quads, and in their upper bits a fourth
            return (
                *(Piece(i, 0, 6, 3 * (i // 4) + i % 4, 0) for i in every if i % 4 < 3),
                *(Piece(i, 2 * j, 2, 3 * (i // 4) + j, 6) for i in (3, 7) for j in range(3)),
            )
    per_vector = 8 // bits
    return tuple(Piece(i, 0, bits, i // per_vector, bits * (i % per_vector)) for i in every)


PIECES: Mapping[int, tuple[Piece, ...]] = {bits: _pieces(bits) for bits in WIDTHS}


def pack_strips(codes: Bytes, bits: int) -> Bytes:
    """[strips * 16, groups * 32] → [strips, groups, bits, 64]."""
    strips, groups = codes.shape[0] // ROWS_OF_STRIP, codes.shape[1] // GROUP
    # Four columns as one word: [strips, 16, groups, 8] → [8, strips, groups, 16].
    words = np.ascontiguousarray(codes).view(np.uint32)
    words = words.reshape(strips, ROWS_OF_STRIP, groups, QUADS).transpose(3, 0, 2, 1)
    quads = np.ascontiguousarray(words).view(np.uint64)  # [8, strips, groups, 8]
    vectors = np.zeros((bits, *quads.shape[1:]), np.uint64)
    for piece in PIECES[bits]:
        mask = np.uint64(_EVERY_BYTE * ((1 << piece.count) - 1))
        part = (quads[piece.quad] >> np.uint64(piece.low)) & mask
        vectors[piece.vector] |= part << np.uint64(piece.at)
    ordered = np.ascontiguousarray(vectors.transpose(1, 2, 0, 3))
    return ordered.view(np.uint8)


def unpack_strips(vectors: Bytes, bits: int) -> Bytes:
    """[strips, groups, bits, 64] → [strips * 16, groups * 32]."""
    strips, groups = vectors.shape[:2]
    words = vectors.view(np.uint64).transpose(2, 0, 1, 3)
    planes = np.ascontiguousarray(words)  # [bits, strips, groups, 8]
    quads = np.zeros((QUADS, strips, groups, _WORDS), np.uint64)
    for piece in PIECES[bits]:
        mask = np.uint64(_EVERY_BYTE * ((1 << piece.count) - 1))
        part = (planes[piece.vector] >> np.uint64(piece.at)) & mask
        quads[piece.quad] |= part << np.uint64(piece.low)
    # [8, strips, groups, 16] → [strips, 16, groups, 8]
    ordered = quads.view(np.uint32).transpose(1, 3, 2, 0)
    return np.ascontiguousarray(ordered).view(np.uint8).reshape(strips * ROWS_OF_STRIP, -1)
