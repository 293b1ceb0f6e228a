"""A packed weight and rows of x go in, the product comes out: in torch, the definition that bodies
and kernels are held to. docs/packed-weights.md says why activations are int8."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import QuantizedMatrix, QuantizedRows, unpack

MOST = 127.0
LEAST_PEAK = 2.0**-100  # of a block; below it x counts as 0
_EXACT = 1 << 24  # float32 holds every integer up to here


def matrices_of(weight: Tensor) -> tuple[QuantizedMatrix, ...]:
    return unpack(weight.detach().cpu().numpy())


def dequantised(weight: Tensor) -> Tensor:
    """[E, N, K]"""
    return torch.from_numpy(np.stack([m.dequantised() for m in matrices_of(weight)]))


def packed_product(x: Tensor, matrix: QuantizedMatrix) -> Tensor:
    """[..., K] → [..., N]"""
    rows = x.flatten(0, -2) if x.ndim > 1 else x[None]  # [M, K]
    if matrix.column_order is not None:
        rows = rows[:, torch.from_numpy(matrix.column_order)]
    if matrix.column_scale is not None:
        rows = rows * torch.from_numpy(matrix.column_scale)
    quantised, scales = quantise_rows(rows, matrix.block)
    parts = [_segment_product(quantised, scales, segment) for segment in matrix.segments]
    return torch.cat(parts, -1).reshape(*x.shape[:-1], matrix.rows)


def quantise_rows(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """[M, K] → whole numbers of -127..127 [M, blocks, block], and what one of each block's stands
    for [M, blocks]. A block with a NaN or an infinity stands for NaN."""
    blocks = -(-x.shape[1] // block)
    padded = torch.nn.functional.pad(x, (0, blocks * block - x.shape[1]))
    padded = padded.reshape(len(x), blocks, block)
    finite = padded.isfinite().all(-1)
    padded = torch.where(finite[..., None], padded, 0.0)
    peak = padded.abs().amax(-1)
    is_zero = peak < LEAST_PEAK
    # Of two tensors: a number by a tensor would be the number times a rounded reciprocal.
    quotient = torch.full_like(peak, MOST) / torch.where(is_zero, 1.0, peak)
    inverse = torch.where(is_zero, 0.0, quotient)
    whole = torch.round(padded * inverse[..., None]).clamp(-MOST, MOST)
    scales = torch.where(is_zero, 0.0, peak / MOST)
    return whole, torch.where(finite, scales, torch.nan)


def whole_numbers(segment: QuantizedRows) -> Tensor:
    """What each value is in steps of its scale * 2^-shift: int32 [N, K] of stored columns."""
    values = segment.codes.astype(np.int32)
    if segment.zeros is None:
        values -= 1 << (segment.bits - 1)
    else:
        values -= segment.per_column(segment.zeros.astype(np.int32))
    values <<= segment.shift
    if segment.half:
        values += 1 << (segment.shift - 1)
    if segment.outliers is not None:
        values[segment.outliers.rows, segment.outliers.columns] += segment.outliers.values
    return torch.from_numpy(values)


def _segment_product(x: Tensor, x_scales: Tensor, segment: QuantizedRows) -> Tensor:
    """x [M, blocks, block] → [M, N]; the sums within blocks are exact."""
    weight = whole_numbers(segment)
    block = segment.block
    most = int(weight.abs().max()) * int(MOST) * block
    exact = torch.float32 if most <= _EXACT else torch.float64
    scales = torch.from_numpy(segment.scales() * np.float32(2.0**-segment.shift))
    y = torch.zeros(len(x), segment.rows)
    for b in range(segment.blocks):
        columns = weight[:, b * block : (b + 1) * block].to(exact)
        sums = x[:, b, : columns.shape[1]].to(exact) @ columns.T
        y = y + sums.to(torch.float32) * scales[:, b] * x_scales[:, b, None]
    return y
