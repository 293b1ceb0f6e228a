"""The weights and how sensitive the model is to each go in; parts of their rows, each with what
every width would cost it in bytes and in loss, come out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import ROWS_OF_STRIP, WIDTHS
from edgewright.export.quantize.allocate import Choice, Part, Price
from edgewright.export.quantize.groups import rows_of
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.plan import WeightGroup
from edgewright.export.quantize.recipe import Recipe
from edgewright.export.quantize.round_to_nearest import quantise_rows
from edgewright.export.quantize.sensitivity import Sensitivity
from edgewright.model.loading import LazyModel

# Rows, and matrices of a stack, that stand for all of a part.
_SAMPLED_ROWS, _SAMPLED_MATRICES = 32, 2
_FEW_BITS = 4
# Neighbouring rows are one part unless one's errors matter so many times more: a bit is a factor 4.
_ALIKE = 3.0
_MOST_PARTS = 48  # of a group
# Without text: how many times more an error of the same relative size is felt there than in a
# matrix in the middle of the model, as measured with text on models that were trained.
_WEIGHTY = {"embedding": 25.0, "head": 15.0, "mixer.input": 6.0, "latent": 3.5, "mixer.up": 3.0}
_WEIGHTY |= {"value": 2.0, "mixer.output": 2.0}
_FIRST, _OF_FIRST = "layers.0.", 5.0


def blind_sensitivity(model: LazyModel, name: str) -> Sensitivity:
    """As if each matrix, whatever its size, could spoil as much as another."""
    tensor = model.weights[name]
    *stack, rows, columns = tensor.shape
    sample = rows_sample(rows)
    flat = torch.cat([tensor.read_flat(r * columns, (r + 1) * columns) for r in sample]).float()
    weight = 1e-3 / max(float(flat.square().mean()) * rows, 1e-30)
    factor = max((f for part, f in _WEIGHTY.items() if part in name), default=1.0)
    factor *= _OF_FIRST if name.startswith(_FIRST) else 1.0
    return Sensitivity(
        torch.full((*stack, rows), weight * factor / max(1, math.prod(stack))),
        torch.full((*stack, columns), 1 / columns),
    )


def parts_of(
    model: LazyModel,
    group: WeightGroup,
    sensitivities: Mapping[str, Sensitivity],
    options: QuantizeOptions,
) -> Iterator[Part]:
    """In the order of the group's rows."""
    base = 0
    limit = max(1, _MOST_PARTS // len(group.names))
    for name, count in zip(group.names, group.rows, strict=True):
        found = sensitivities[name]
        by_row = found.rows.reshape(-1, count)
        columns = found.columns.reshape(len(by_row), -1)
        for start, stop in alike(by_row.sum(0), limit):
            part = (base + start, base + stop)
            prices = _prices(model, group, part, by_row[:, start:stop], columns, options)
            yield Part(group.key, stop - start, prices)
        base += count


def alike(rows: Tensor, limit: int) -> list[tuple[int, int]]:
    """Ranges of neighbouring strips whose rows matter about as much, at most `limit` of them."""
    strips = [(float(part.double().sum()), len(part)) for part in torch.split(rows, ROWS_OF_STRIP)]
    while len(strips) > 1:
        ratios = [
            abs(math.log((a[0] / a[1] + 1e-30) / (b[0] / b[1] + 1e-30)))
            for a, b in pairwise(strips)
        ]
        at = min(range(len(ratios)), key=ratios.__getitem__)
        if ratios[at] > math.log(_ALIKE) and len(strips) <= limit:
            break
        a, b = strips[at : at + 2]
        strips[at : at + 2] = [(a[0] + b[0], a[1] + b[1])]
    ranges, begin = [], 0
    for _, size in strips:
        ranges.append((begin, begin + size))
        begin += size
    return ranges


def _prices(
    model: LazyModel,
    group: WeightGroup,
    part: tuple[int, int],
    rows: Tensor,  # [E, rows]
    columns: Tensor,  # [E, K]
    options: QuantizeOptions,
) -> tuple[Price, ...]:
    start, stop = part
    count = min(len(rows), _SAMPLED_MATRICES)
    chosen = [i * len(rows) // count for i in range(count)]
    losses = dict.fromkeys(choices(options), 0.0)
    for index in chosen:
        weight = rows_of(model, group, index, start, stop)
        if not weight.isfinite().all():
            raise ExportError(
                f"{', '.join(group.names)} has values that are not finite (NaN or infinity): it"
                " cannot be quantised"
            )
        sample = rows_sample(stop - start)
        taken, felt = weight[sample], rows[index, sample]
        scale = float(rows[index].double().sum()) / max(float(felt.double().sum()), 1e-30)
        scale *= len(rows) / len(chosen)
        for choice in losses:
            recipe = recipe_of(choice, options.block)
            found = torch.from_numpy(quantise_rows(taken, recipe, columns[index]).dequantised())
            error = (found - taken).square() @ columns[index]
            losses[choice] += float((error * felt).sum()) * scale
    return tuple(
        Price(choice, bytes_of(group, stop - start, choice, options.block), loss)
        for choice, loss in losses.items()
    )


def choices(options: QuantizeOptions) -> list[Choice]:
    found = [Choice(bits, 0.0) for bits in WIDTHS]
    # Where there are few codes, outliers and a zero point in the right place can be worth theirs.
    for bits in (bits for bits in WIDTHS if bits <= _FEW_BITS):
        found.append(Choice(bits, 0.0, zeros=True))
        if options.outliers:
            found.append(Choice(bits, options.outliers))
    return found


def recipe_of(choice: Choice, block: int) -> Recipe:
    return Recipe(choice.bits, block, choice.outliers, choice.zeros)


def bytes_of(group: WeightGroup, rows: int, choice: Choice, block: int) -> float:
    """Of these rows in all matrices of the stack, headers and padding between parts left out."""
    stack, _, columns = group.shape
    padded = -(-columns // 32) * 32
    strips = -(-rows // ROWS_OF_STRIP)
    codes = strips * ROWS_OF_STRIP * padded * choice.bits / 8
    meta = strips * ROWS_OF_STRIP * (2 + -(-padded // block) * (1 + choice.zeros))
    entries = 0.0
    if choice.outliers:
        entries = 2 * rows * columns * choice.outliers + strips * (4 + padded / 64)
    return stack * (codes + meta + entries)


def rows_sample(rows: int) -> list[int]:
    count = min(rows, _SAMPLED_ROWS)
    return [i * rows // count for i in range(count)]
