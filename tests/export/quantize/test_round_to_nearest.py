"""Rounding to nearest: errors, stored scales, zero points, outliers, and matrices that are odd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import WIDTHS, QuantizedMatrix, pack, unpack
from edgewright.export.quantize.make_up import settle
from edgewright.export.quantize.outliers import listed, worst
from edgewright.export.quantize.recipe import Recipe
from edgewright.export.quantize.round_to_nearest import quantise_rows
from tests.export.quantize.matrices import QUERY, bits_of, error_of, example_matrix, hessian

SYMMETRIC = {"zeros": False, "outliers": 0.0}
# Of the mean square of a Gaussian with 128-blocks: what uniform codes with the best clip leave.
MOST_ERROR = {2: 0.13, 3: 0.04, 4: 0.0115, 5: 0.0035, 6: 0.001, 8: 0.0001}


@pytest.mark.parametrize("bits", WIDTHS)
def test_clip_search_is_near_the_best_uniform_codes(bits: int) -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    rows = quantise_rows(weight, Recipe(bits, **SYMMETRIC))
    assert error_of(rows, weight) < MOST_ERROR[bits]


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_clip_search_beats_the_whole_range(bits: int) -> None:
    weight = example_matrix()
    blocks = weight.reshape(weight.shape[0], -1, 128)
    step = blocks.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    whole = (blocks / step).round() * step
    naive = float((whole - blocks).square().sum() / blocks.square().sum())
    assert error_of(quantise_rows(weight, Recipe(bits, **SYMMETRIC)), weight) < 0.9 * naive


@pytest.mark.parametrize("bits", (2, 3, 4, 6))
def test_stored_scales_cost_little(bits: int) -> None:
    weight = example_matrix()
    coded = quantise_rows(weight, Recipe(bits, **SYMMETRIC))
    wide = quantise_rows(weight, Recipe(bits, **SYMMETRIC, scale_kind=1))
    assert error_of(coded, weight) < 1.01 * error_of(wide, weight)
    assert coded.scale_codes is not None and (coded.scale_codes.max(1) == 255).all()


@pytest.mark.parametrize("bits", (2, 3, 4, 5))
def test_outliers_help_more_than_their_bits(bits: int) -> None:
    weight = example_matrix()
    without = error_of(quantise_rows(weight, Recipe(bits, **SYMMETRIC)), weight)
    rows = quantise_rows(weight, Recipe(bits, zeros=False))
    assert rows.outliers is not None and len(rows.outliers) <= round(0.005 * weight.numel())
    assert error_of(rows, weight) < without * 4.0 ** -(0.005 * 16 + 8 / 1024)


def test_eight_bits_have_no_outliers() -> None:
    assert quantise_rows(example_matrix(QUERY), Recipe(8, outliers=0.01)).outliers is None


@pytest.mark.parametrize("kind", (0, 1, 2))
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (17, 130), (40, 200), (16, 64)])
def test_odd_shapes_pack(shape: tuple[int, int], kind: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for bits, block in ((2, 32), (3, 128), (5, 64), (8, 128)):
        rows = quantise_rows(weight, Recipe(bits, block, scale_kind=kind))  # type: ignore[arg-type]
        (back,) = unpack(pack([QuantizedMatrix((rows,))]))
        assert np.array_equal(back.dequantised(), rows.dequantised())
        assert error_of(rows, weight) < 0.2


def test_zero_points_are_there_where_they_pay() -> None:
    weight = torch.rand(32, 256, generator=torch.Generator().manual_seed(2)) + 0.1
    positive = quantise_rows(weight, Recipe(4, outliers=0))
    assert positive.zeros is not None
    assert error_of(positive, weight) < 0.5 * error_of(
        quantise_rows(weight, Recipe(4, **SYMMETRIC)), weight
    )
    even = torch.randn(32, 256, generator=torch.Generator().manual_seed(2))
    assert quantise_rows(even, Recipe(3)).zeros is None


def test_constant_and_zero_rows() -> None:
    weight = torch.zeros(20, 160)
    weight[1] = 0.25
    weight[2] = -3.0
    weight[3, 7] = 1e-38
    weight[4] = 1e37
    weight[5, 130:] = torch.linspace(-1, 1, 30)
    for recipe in (Recipe(4), Recipe(3, zeros=True), Recipe(2, outliers=0), Recipe(8)):
        rows = quantise_rows(weight, recipe)
        values = torch.from_numpy(rows.dequantised())
        assert torch.isfinite(values).all()
        assert torch.equal(values[0], torch.zeros(160))
        assert torch.allclose(values[1:3], weight[1:3], rtol=0.02)
        assert torch.allclose(values[4], weight[4], rtol=0.02)


def test_a_huge_outlier_spoils_little() -> None:
    weight = example_matrix(QUERY).clone()
    spike = 60 * weight.abs().max()
    weight[5, 7] = spike
    rows = quantise_rows(weight, Recipe(4))
    values = torch.from_numpy(rows.dequantised())
    assert abs(values[5, 7] - spike) < 0.2 * spike
    rest = [i for i in range(len(weight)) if i != 5]
    clean = quantise_rows(example_matrix(QUERY), Recipe(4))
    usual = error_of(clean, example_matrix(QUERY))
    error = (values[rest] - weight[rest]).square().sum() / weight[rest].square().sum()
    assert error < 1.2 * usual


def test_no_more_outliers_in_a_chunk_than_can_be_counted() -> None:
    gain = torch.zeros(40, 200)
    gain[16:32, 64:128] = torch.rand(16, 64, generator=torch.Generator().manual_seed(3)) + 1
    gain[0, :100] = 0.5
    chosen = worst(gain, 0.1)
    assert int(chosen[16:32, 64:128].sum()) == 255
    kept = gain[16:32, 64:128][chosen[16:32, 64:128]]
    assert float(kept.min()) == float(gain[16:32, 64:128].flatten().topk(255).values.min())
    assert int(worst(torch.ones(16, 64), 0.25).sum()) == 255
    assert int(worst(torch.zeros(16, 64), 0.25).sum()) == 0
    assert len(listed(np.zeros((4, 4), np.int8))) == 0


def test_columns_that_count_more_are_nearer() -> None:
    weight, moments = example_matrix(), hessian(640)
    aware = quantise_rows(weight, Recipe(3), moments)
    blind = quantise_rows(weight, Recipe(3))
    diagonal = moments.diagonal()
    assert error_of(aware, weight, diagonal) < 0.9 * error_of(blind, weight, diagonal)
    assert bits_of(aware) == bits_of(quantise_rows(weight, Recipe(3), diagonal))


def test_bands_do_not_show() -> None:
    """Rows do not depend on those of another band, once the make-up is settled."""
    weight = torch.randn(2000, 1024, generator=torch.Generator().manual_seed(4))
    recipe = settle(weight, Recipe(3))
    whole = quantise_rows(weight, recipe)
    assert bits_of(whole.rows_between(0, 1024)) == bits_of(quantise_rows(weight[:1024], recipe))


def test_same_bytes_on_one_thread_and_two() -> None:
    before = torch.get_num_threads()
    found = set()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.add(bits_of(quantise_rows(example_matrix(QUERY)[:160], Recipe(3), hessian(256))))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_what_is_not_finite_is_refused(value: float) -> None:
    weight = torch.ones(20, 40)
    weight[3, 9] = value
    with pytest.raises(ExportError, match=r"row 3, column 9"):
        quantise_rows(weight, Recipe(4))
    bad = torch.ones(40)
    bad[0] = value
    with pytest.raises(ExportError, match="hessian"):
        quantise_rows(torch.ones(20, 40), Recipe(4), bad)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 7},
        {"bits": 4, "block": 48},
        {"bits": 4, "outliers": 0.5},
        {"bits": 4, "shift": 4},
        {"bits": 8, "half": True},
        {"bits": 4, "damping": 0.0},
    ],
)
def test_a_recipe_is_what_the_format_can_hold(fields: dict[str, float]) -> None:
    with pytest.raises(ExportError):
        Recipe(**fields)  # type: ignore[arg-type]
