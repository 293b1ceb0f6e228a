"""Rows of weights and what each column counts go in; for every block its scale, as it is stored,
and its zero point come out: those whose codes are the least wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgewright.export.quantize.recipe import Recipe, ScaleKind

# The steps that are tried, as fractions of the one that just reaches the largest weight. Each is
# improved by least squares, so the grid may be coarse.
_CLIPS = 12
_LEAST_CLIP = {2: 0.2, 3: 0.3, 4: 0.45, 5: 0.6, 6: 0.75, 8: 0.92}
_MOST_CLIP = 1.1
_REFITS = 2
_PASS_WEIGHTS = 1 << 17
_MOST_SCALE_CODE = 255
# Below this a block is as good as zero, and 1 / scale would overflow.
_LEAST_SCALE = 2.0**-100
# A block that needs a code below this would gain by a finer row scale.
_FEW_CODES = 12


@dataclass(frozen=True, eq=False)
class Grid:
    """The scales of some rows. float32 [rows, blocks], but for the row's own [rows]."""

    scale: Tensor  # what a code's step is, exactly as it will be read
    row_scale: Tensor | None  # of scale kind 0, with its codes
    scale_codes: Tensor | None
    zeros: Tensor | None  # uint8, where blocks have their own
    centre: Tensor  # the code, or half code, that is worth 0

    def by_column(self, columns: int, block: int) -> tuple[Tensor, Tensor]:
        """Scale and centre of every weight, [rows, columns]."""
        index = torch.arange(columns) // block
        return self.scale[:, index], self.centre.expand_as(self.scale)[:, index]

    def mixed(self, other: Grid, rows: Tensor) -> Grid:
        """`other` in these rows (bool [rows]), of the same kind."""

        def mix(mine: Tensor | None, others: Tensor | None) -> Tensor | None:
            if mine is None or others is None:
                return None
            return torch.where(rows.view(-1, *[1] * (mine.ndim - 1)), others, mine)

        scale = mix(self.scale, other.scale)
        assert scale is not None
        row_scale = mix(self.row_scale, other.row_scale)
        codes = mix(self.scale_codes, other.scale_codes)
        return replace(self, scale=scale, row_scale=row_scale, scale_codes=codes)


def blocks_of(values: Tensor, block: int) -> Tensor:
    """[..., columns] → [..., blocks, block], filled up with zeros."""
    columns = values.shape[-1]
    count = -(-columns // block)
    padded = torch.nn.functional.pad(values, (0, count * block - columns))
    return padded.reshape(*values.shape[:-1], count, block)


def fit(
    weight: Tensor, importance: Tensor, recipe: Recipe, taken_out: Tensor | None = None
) -> Grid:
    """`importance` [K] weighs the squared errors; what is `taken_out` (bool [N, K]) has none."""
    found = []
    for rows in few_rows(weight):
        out = None if taken_out is None else taken_out[rows]
        found.append(_fit(weight[rows], importance, recipe, out))
    return found[0] if len(found) == 1 else _joined(found)


def few_rows(weight: Tensor) -> Iterator[slice]:
    """So many at a time that what is made of them stays in the cache."""
    height = max(1, _PASS_WEIGHTS // weight.shape[1])
    for top in range(0, weight.shape[0], height):
        yield slice(top, top + height)


def _joined(grids: list[Grid]) -> Grid:
    def joined(tensors: list[Tensor | None]) -> Tensor | None:
        given = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(given) if given else None

    scale = torch.cat([grid.scale for grid in grids])
    row_scale = joined([grid.row_scale for grid in grids])
    codes = joined([grid.scale_codes for grid in grids])
    zeros = joined([grid.zeros for grid in grids])
    centre = grids[0].centre if zeros is None else torch.cat([grid.centre for grid in grids])
    return Grid(scale, row_scale, codes, zeros, centre)


def _fit(weight: Tensor, importance: Tensor, recipe: Recipe, taken_out: Tensor | None) -> Grid:
    weighing = blocks_of(importance, recipe.block)
    if taken_out is not None:
        weight = weight.masked_fill(taken_out, 0)
        weighing = weighing * blocks_of(~taken_out, recipe.block)
    blocks = blocks_of(weight, recipe.block)
    peak = blocks.abs().amax(-1, keepdim=True)
    # The search is on weights of -1..1, so that no square overflows.
    unit = blocks / peak.clamp(min=_LEAST_SCALE)
    best = _Best(unit, weighing, recipe)
    for centre in _centres(unit, recipe):
        best.search(centre)
    best.refit()
    step = (best.step * peak).squeeze(-1)
    centre = best.centre.squeeze(-1)
    zeros = (centre + (0.5 if recipe.half else 0.0)).to(torch.uint8) if recipe.zeros else None
    stored = _stored(step, recipe.scale_kind)
    grid = Grid(*stored, zeros, centre if recipe.zeros else centre[:1, :1])
    return _quantised(grid, unit, peak, weighing, recipe) if recipe.scale_kind == 0 else grid


def whole_range(weight: Tensor, recipe: Recipe) -> Grid:
    """Each block's codes from its smallest weight, or 0, to its largest, with a zero point."""
    blocks = blocks_of(weight, recipe.block)
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scale, row, codes = _stored((high - low) / recipe.most_code, recipe.scale_kind)
    inverse = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
    zero = (-low * inverse).round().clamp(0, recipe.most_code)
    return Grid(scale, row, codes, zero.to(torch.uint8), zero)


def _centres(unit: Tensor, recipe: Recipe) -> Iterator[Tensor]:
    if not recipe.zeros:
        yield torch.full((*unit.shape[:2], 1), recipe.middle)
        return
    low, high = unit.amin(-1, keepdim=True), unit.amax(-1, keepdim=True)
    width = (high - low).clamp(min=_LEAST_SCALE)
    aside = 0.5 if recipe.half else 0.0
    even = (-low / width * recipe.most_code + aside).round()
    for offset in (0, -1, 1):
        yield (even + offset).clamp(0, recipe.most_code) - aside


class _Best:
    """For every block the step and centre that gave the least error so far."""

    def __init__(self, unit: Tensor, weighing: Tensor, recipe: Recipe) -> None:
        self.unit, self.weighing, self.recipe = unit, weighing, recipe
        self.weighted = unit * weighing
        blocks = unit.shape[:2]
        self.step = torch.zeros((*blocks, 1))
        self.centre = torch.full((*blocks, 1), recipe.middle)
        self.gain = torch.full((*blocks, 1), -1.0)

    def search(self, centre: Tensor) -> None:
        below, above = centre, self.recipe.most_code - centre
        high = self.unit.amax(-1, keepdim=True).clamp(min=0)
        low = -self.unit.amin(-1, keepdim=True).clamp(max=0)
        reach = torch.maximum(high / above.clamp(min=0.5), low / below.clamp(min=0.5))
        reach = torch.where(reach > 0, reach, torch.ones_like(reach)).clamp(max=2.0)
        least = _LEAST_CLIP[self.recipe.bits]
        for i in range(_CLIPS):
            clip = least * (_MOST_CLIP / least) ** (i / (_CLIPS - 1))
            self._try(reach * clip, centre)

    def refit(self) -> None:
        for _ in range(_REFITS):
            self._try(self.step, self.centre)

    def _try(self, step: Tensor, centre: Tensor) -> None:
        # With these codes c the best step is Σhwc / Σhc², and Σhw² less (Σhwc)² / Σhc² is left.
        inverse = torch.where(step > 0, 1 / step, torch.zeros_like(step))
        codes = torch.mul(self.unit, inverse).add_(centre).round_()
        codes = codes.clamp_(0, self.recipe.most_code).sub_(centre)
        cross = (self.weighted * codes).sum(-1, keepdim=True)
        power = codes.square_().mul_(self.weighing).sum(-1, keepdim=True)
        step = torch.where((power > 0) & (cross > 0), cross / power, torch.zeros_like(cross))
        gain = cross * step
        better = gain > self.gain
        self.gain = torch.where(better, gain, self.gain)
        self.step = torch.where(better, step, self.step)
        self.centre = torch.where(better, centre, self.centre)


def _stored(step: Tensor, kind: ScaleKind) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The scales nearest to these that can be stored; with kind 0, the row's and codes too."""
    step = torch.where(step >= _LEAST_SCALE, step, torch.zeros_like(step))
    if kind == 0:
        row = row_scale_of(step)
        codes = scale_codes_of(step, row)
        return row[:, None] * codes, row, codes
    limit = torch.finfo(torch.float16 if kind == 1 else torch.bfloat16).max
    narrow = step.clamp(max=limit).to(torch.float16 if kind == 1 else torch.bfloat16)
    return narrow.float(), None, None


def nearest_stored(grid: Grid, step: Tensor, recipe: Recipe) -> Grid:
    """The same zero points, and the scales nearest to `step` that can be stored."""
    scale, row, codes = _stored(step, recipe.scale_kind)
    return replace(grid, scale=scale, row_scale=row, scale_codes=codes)


def row_scale_of(step: Tensor) -> Tensor:
    """[rows, blocks] → [rows]: the row scale of which the largest step is 255, as it is stored."""
    return (step.amax(-1) / _MOST_SCALE_CODE).bfloat16().float()


def scale_codes_of(step: Tensor, row: Tensor) -> Tensor:
    """Float, 0..255."""
    inverse = torch.where(row > 0, 1 / row, torch.zeros_like(row))
    codes = (step * inverse[:, None]).round().clamp(0, _MOST_SCALE_CODE)
    # Rounding the row's scale must not make its largest code another.
    return codes.masked_fill((step == step.amax(-1, keepdim=True)) & (step > 0), _MOST_SCALE_CODE)


def _quantised(grid: Grid, unit: Tensor, peak: Tensor, weighing: Tensor, recipe: Recipe) -> Grid:
    """Each block's scale code once more, by the error of its codes on the scale as stored; and a
    finer row scale, which clips the largest, where small blocks gain more by it."""
    row, codes = grid.row_scale, grid.scale_codes
    assert row is not None and codes is not None
    step = grid.scale

    def error(scale: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        relative = scale[..., None] / peak[rows].clamp(min=_LEAST_SCALE)
        inverse = torch.where(relative > 0, 1 / relative, torch.zeros_like(relative))
        centre = grid.centre.expand_as(step)[rows][..., None]
        back = torch.mul(unit[rows], inverse).add_(centre).round_()
        back = back.clamp_(0, recipe.most_code).sub_(centre).mul_(relative).sub_(unit[rows])
        counted = weighing[rows] if weighing.ndim == 3 else weighing
        return back.square_().mul_(counted).sum(-1) * peak[rows].squeeze(-1).square()

    def settled(
        row: Tensor, codes: Tensor, rows: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        least = error(row[:, None] * codes, rows)
        for offset in (-1, 1):
            fixed = codes == _MOST_SCALE_CODE
            other = torch.where(fixed, codes, codes + offset).clamp(0, _MOST_SCALE_CODE)
            found = error(row[:, None] * other, rows)
            codes = torch.where(found < least, other, codes)
            least = torch.minimum(found, least)
        return codes, least.double().sum(-1)

    wanted = step.clone()
    codes, least = settled(row, codes)
    live = torch.where(codes > 0, codes, torch.full_like(codes, _MOST_SCALE_CODE))
    coarse = (live.amin(-1) < _FEW_CODES).nonzero().squeeze(-1)
    for finer in (0.5, 0.25, 0.125) if coarse.numel() else ():
        other = (row[coarse] * finer).contiguous()
        found, total = settled(other, scale_codes_of(wanted[coarse], other), coarse)
        better = total < least[coarse]
        at = coarse[better]
        row[at], codes[at], least[at] = other[better], found[better], total[better]
    return replace(grid, scale=row[:, None] * codes, row_scale=row, scale_codes=codes)
