"""An expression over a checkpoint's tensors in; the codes it is stored in out, where it has any.

A matrix that a GPTQ, AWQ or compressed-tensors checkpoint keeps as integers goes into a package
with those integers, its scales and zero points as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgewright.custom_ops.packed_weights import QuantizedRows
from edgewright.model.integer_scaled import IntegerTensor
from edgewright.model.lazy import LazyTensor, parts_of

_BLOCKS = (128, 64, 32)
_SCALE_KINDS = {torch.float16: 1, torch.bfloat16: 2}


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """Some rows of an IntegerTensor, its columns in `order` if that is not None."""

    tensor: IntegerTensor
    first: int
    rows: int
    block: int
    scale_kind: int

    @property
    def bits(self) -> int:
        return self.tensor.bits

    @property
    def order(self) -> torch.Tensor | None:
        return self.tensor.order

    def read(self, start: int, stop: int) -> QuantizedRows:
        """Rows start..stop of these."""
        low, high = self.first + start, self.first + stop
        tensor = self.tensor
        codes = tensor.codes(low, high)
        if tensor.order is not None:
            codes = codes[:, tensor.order]
        # A group of several blocks: each has the group's scale.
        blocks = -(-tensor.shape[1] // self.block)
        group = torch.arange(blocks) * self.block // tensor.group_size
        zeros = tensor.zeros[low:high][:, group]
        scales = tensor.scales[low:high].float()[:, group]
        is_usual = bool((tensor.zeros == 1 << (tensor.bits - 1)).all())
        return QuantizedRows(
            bits=tensor.bits,
            block=self.block,
            codes=np.ascontiguousarray(codes.numpy()),
            scale_kind=self.scale_kind,
            row_scale=np.zeros(high - low, np.float32),
            scale_codes=np.zeros((high - low, blocks), np.uint8),
            block_scale=scales.contiguous().numpy(),
            zeros=None if is_usual else zeros.contiguous().numpy(),
            shift=0,
            outliers=None,
        )


def stored_codes(tensor: LazyTensor) -> tuple[StoredCodes, ...] | None:
    """One after the other they are the tensor's rows (of all its matrices, where it is a stack).
    None: some of it is not stored in codes, or not in blocks that packed weights have."""
    found: list[StoredCodes] = []
    for part, first, rows in parts_of(tensor):
        if not isinstance(part, IntegerTensor):
            return None
        block = _block(part)
        kind = _scale_kind(part.scales)
        if block is None or kind is None:
            return None
        found.append(StoredCodes(part, first, rows, block, kind))
    return tuple(found) or None


def _block(tensor: IntegerTensor) -> int | None:
    columns, size = tensor.shape[1], tensor.group_size
    if tensor.order is not None:
        counts = torch.bincount(tensor.group_of, minlength=tensor.groups)
        if not bool((counts[:-1] == size).all()):
            return None
    if tensor.groups == 1:
        return _BLOCKS[0]
    fitting = [block for block in _BLOCKS if size % block == 0]
    return fitting[0] if fitting and columns else None


def _scale_kind(scales: torch.Tensor) -> int | None:
    """Scales saved in float32 have as a rule been float16 or bfloat16 before."""
    if scales.dtype in _SCALE_KINDS:
        return _SCALE_KINDS[scales.dtype]
    for dtype, kind in _SCALE_KINDS.items():
        if torch.equal(scales.to(dtype).float(), scales):
            return kind
    return None
