"""Column scales: they lower the true error of the output, or are not given."""

from __future__ import annotations

import torch

from edgewright.export.quantize import awq, gptq, round_to_nearest
from edgewright.export.quantize.recipe import Recipe
from tests.export.quantize.matrices import error_of, example_matrix, hessian


def test_scales_help_where_few_columns_matter() -> None:
    weight = torch.cat([example_matrix(), example_matrix("layers.2.feed_forward.down.weight")])
    loud = torch.ones(640, dtype=torch.float64)
    loud[::40] = 8
    moments = hessian(640) * loud * loud[:, None]
    scale = awq.column_scale(weight, Recipe(3), moments)
    assert scale is not None and torch.equal(scale, scale.bfloat16().float())
    scaled = moments * scale * scale[:, None]
    for quantise in (round_to_nearest.quantise_rows, gptq.quantise_rows):
        plain = error_of(quantise(weight, Recipe(3), moments), weight, moments)
        better = error_of(quantise(weight / scale, Recipe(3), scaled), weight / scale, scaled)
        assert better < 0.97 * plain


def test_no_scales_where_all_columns_are_alike() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    assert awq.column_scale(weight, Recipe(4), torch.eye(256)) is None


def test_dead_columns_have_a_scale_that_is_finite() -> None:
    moments = hessian(640).clone()
    moments[:, :50] = 0
    moments[:50] = 0
    weight = example_matrix().clone()
    weight[:, 100:110] = 0
    for compensated in (False, True):
        scale = awq.column_scale(weight, Recipe(3), moments, compensated=compensated)
        assert scale is None or (torch.isfinite(scale).all() and (scale > 0).all())
