"""A float32 model goes in; the same model with plainly quantised weights comes out: the baselines.

Nothing here is shared with export/quantize, on purpose: round-to-nearest as llama.cpp's Q4_0 has
it, and GPTQ as its paper has it (Frantar et al., 2022: columns in natural order, 1% damping, scales
from the largest weight of each block as it then is, one float16 a block).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewright.export.quantize.observe import Hessians
from edgewright.export.quantize.plan import WeightGroup
from edgewright.export.quantize.stream import LayerStream

DAMPING = 0.01
_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class PlainRecipe:
    bits: int
    block: int
    zeros: bool = False  # an integer zero point for each block, of as many bits

    def stored_bytes(self, rows: int, columns: int) -> float:
        blocks = rows * math.ceil(columns / self.block)
        each = 16 + (self.bits if self.zeros else 0)
        return (rows * columns * self.bits + blocks * each) / 8


def round_to_nearest(weight: Tensor, recipe: PlainRecipe) -> Tensor:
    """[N, K] → what is left of it; the weight furthest from 0 is exact, as Q4_0 has it."""
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % recipe.block))
    blocks = padded.view(rows, -1, recipe.block)
    low = 1 << (recipe.bits - 1)
    furthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = (furthest / -low).half().float()
    codes = (blocks / torch.where(scale == 0, 1.0, scale)).round().clamp(-low, low - 1)
    return (codes * scale).view(rows, -1)[:, :columns].contiguous()


def gptq(weight: Tensor, hessian: Tensor, recipe: PlainRecipe) -> Tensor:
    """[N, K] and the sum of x xᵀ over tokens [K, K] → what is left of the weight."""
    left, hessian = weight.double().clone(), hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    left[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    result = torch.empty_like(left)
    for begin in range(0, left.shape[1], recipe.block):
        end = min(begin + recipe.block, left.shape[1])
        scale, zero = _scales(left[:, begin:end], recipe)
        block = left[:, begin:end].clone()
        errors = torch.zeros_like(block)
        for at in range(end - begin):
            row = factor[begin + at, begin + at : end]
            codes = (block[:, at] / scale + zero).round().clamp(0, (1 << recipe.bits) - 1)
            result[:, begin + at] = (codes - zero) * scale
            errors[:, at] = (block[:, at] - result[:, begin + at]) / row[0]
            block[:, at:] -= errors[:, at, None] * row
        left[:, end:] -= errors @ factor[begin:end, end:]
    return result.float()


def _scales(block: Tensor, recipe: PlainRecipe) -> tuple[Tensor, Tensor]:
    """Each row's step and zero point."""
    most = (1 << recipe.bits) - 1
    low, high = block.amin(-1).clamp_max(0), block.amax(-1).clamp_min(0)
    if not recipe.zeros:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / most).half().double()
    scale[scale == 0] = 1
    middle = torch.full_like(scale, (most + 1) / 2)
    return scale, (-low / scale).round() if recipe.zeros else middle


Values = Mapping[str, Tensor]


def all_rounded(stream: LayerStream, plan: Sequence[WeightGroup], recipe: PlainRecipe) -> Values:
    return {
        name: _apply(stream, name, lambda weight: round_to_nearest(weight, recipe))
        for group in plan
        for name in group.names
    }


def all_gptq(
    stream: LayerStream, plan: Sequence[WeightGroup], recipe: PlainRecipe, rows: Tensor
) -> None:
    """Layer by layer, each on what the quantised layers before it give of `rows` [n, tokens]; the
    table last, as a head."""
    shapes = {name: stream.model.weights[name].shape for group in plan for name in group.names}
    with torch.no_grad():
        embedded = [stream.embed(each) for each in rows.split(_rows_of_batch(rows))]
        hidden = list(embedded)
        for index in range(len(stream)):
            held = _held(stream, f"layers.{index}.")
            hessians = Hessians(shapes)
            with hessians.watching(held):
                for x, first in zip(hidden, embedded, strict=True):
                    stream.run_layer(index, x, _seen(stream, first))
            for name in held.keys() & shapes.keys():
                _quantise(stream, name, hessians, recipe)
            hidden = [
                stream.run_layer(index, x, _seen(stream, first))
                for x, first in zip(hidden, embedded, strict=True)
            ]
        head = "embedding.weight" if stream.config.tied_head else "head.weight"
        hessians = Hessians(shapes)
        with hessians.watching({head: _parameter(stream, head)}):
            for x in hidden:
                stream.logits(x)
        _quantise(stream, head, hessians, recipe)
        for group in plan:
            if group.kind == "gather":
                for name in group.names:
                    _apply(stream, name, lambda weight: round_to_nearest(weight, recipe))


def _rows_of_batch(rows: Tensor) -> int:
    return max(1, _BATCH_TOKENS // rows.shape[1])


def _seen(stream: LayerStream, embedded: Tensor) -> Tensor | None:
    return embedded if stream.sees_embedding else None


def _held(stream: LayerStream, prefix: str) -> dict[str, Tensor]:
    return {n: stream.parameter(place) for place, n in stream.names_under(prefix).items()}


def _parameter(stream: LayerStream, name: str) -> Tensor:
    return stream.parameter(name)


def _quantise(stream: LayerStream, name: str, hessians: Hessians, recipe: PlainRecipe) -> None:
    hessian = hessians.take(name)
    _apply(stream, name, lambda weight: gptq(weight, hessian, recipe))


def _apply(stream: LayerStream, name: str, quantise: Callable[[Tensor], Tensor]) -> Tensor:
    parameter = _parameter(stream, name)
    if parameter.ndim != 2:
        raise SystemExit(f"{name} is a stack of experts; the baselines have none")
    with torch.no_grad():
        parameter.copy_(quantise(parameter))
    return parameter
