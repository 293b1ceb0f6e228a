"""Quantising in its plainest form: every group's weights rounded by themselves, to any width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewright.custom_ops.packed_weights import (
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
    pack,
    to_bfloat16,
)
from edgewright.export.quantize.plan import WeightGroup
from edgewright.model.loading import LazyModel

Float32 = NDArray[np.float32]
_CORRECTED = 0.005


@dataclass(frozen=True)
class Plain:
    """`bits` of each group's members in turn: (3, 4) gives queries 3 and keys 4."""

    bits: Sequence[int]
    block: int = 64
    zeros: bool = False
    outliers: bool = False
    column_scale: bool = False
    column_order: bool = False

    def quantize_model(
        self, model: LazyModel, plan: Sequence[WeightGroup], *_: object
    ) -> PlainQuantized:
        return PlainQuantized({group.key: self.quantised(model, group) for group in plan})

    def quantised(self, model: LazyModel, group: WeightGroup) -> PlainGroup:
        """The members' rows one after the other, in a segment each; each expert in a matrix."""
        experts, _, columns = group.shape
        scale = order = None
        if self.column_scale and group.kind in ("matmul", "experts"):
            scale = to_bfloat16(np.linspace(0.5, 2.0, columns, dtype=np.float32))
        stack, widths = [], []
        for expert in range(experts):
            segments = []
            if self.column_order and group.kind != "latent_up":
                order = np.random.default_rng(expert).permutation(columns)
            for i, (name, rows) in enumerate(zip(group.names, group.rows, strict=True)):
                weight = model.weights[name].read().float().numpy().reshape(experts, rows, columns)
                values = weight[expert] if order is None else weight[expert][:, order]
                values = values if scale is None else values / scale
                widths.append(self.bits[i % len(self.bits)])
                segments.append(self.rounded(values, widths[-1]))
            stack.append(QuantizedMatrix(tuple(segments), scale, order))
        return PlainGroup(pack(stack).tobytes(), tuple(sorted(set(widths))))

    def rounded(self, weight: Float32, bits: int) -> QuantizedRows:
        rows, columns = weight.shape
        blocks = -(-(-(-columns // 32) * 32) // self.block)
        padded = np.zeros((rows, blocks * self.block), np.float32)
        padded[:, :columns] = weight
        by_block = padded.reshape(rows, blocks, self.block)
        most, middle = (1 << bits) - 1, 1 << (bits - 1)
        if self.zeros:
            low, high = by_block.min(-1).clip(max=0), by_block.max(-1).clip(min=0)
            scale = (high - low) / most
        else:
            scale = np.abs(by_block).max(-1) / middle
        scale = to_bfloat16(np.maximum(scale, 1e-8))
        zeros = np.rint(-low / scale).clip(0, most).astype(np.uint8) if self.zeros else None
        middles = np.full(scale.shape, middle) if zeros is None else zeros
        steps = by_block / scale[..., None]
        codes = np.rint(steps + middles[..., None]).clip(0, most)
        codes = codes.reshape(rows, -1)[:, :columns].astype(np.uint8)
        found = QuantizedRows(bits, self.block, codes, scale_kind=2, block_scale=scale, zeros=zeros)
        if not self.outliers or bits == 8:
            return found
        shift = {5: 2, 6: 1}.get(bits, 3)
        left = (weight - found.dequantised()) / found.per_column(scale) * 2**shift
        worst = np.argsort(-np.abs(left), axis=None)[: max(1, int(_CORRECTED * weight.size))]
        places = np.unravel_index(np.sort(worst), weight.shape)
        values = np.rint(left[places]).clip(-32, 31).astype(np.int8)
        corrected = Outliers(places[0].astype(np.int64), places[1].astype(np.int64), values)
        return QuantizedRows(bits, self.block, codes, 2, None, None, scale, zeros, shift, corrected)


@dataclass(frozen=True)
class PlainGroup:
    blob: bytes
    widths: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.blob)

    def pieces(self) -> Iterator[bytes]:
        yield self.blob


@dataclass(frozen=True)
class PlainQuantized:
    groups: Mapping[str, PlainGroup]
    method: str = "plain"
    tokens: int = 0

    def discard(self) -> None:
        pass
