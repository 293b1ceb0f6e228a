"""GPTQ: beside a naive one, beside rounding to nearest, and on hessians that are singular."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import QuantizedMatrix, pack, unpack
from edgewright.export.quantize import gptq, round_to_nearest
from edgewright.export.quantize.hessian import cholesky, factored
from edgewright.export.quantize.recipe import Recipe
from tests.export.quantize.matrices import QUERY, bits_of, error_of, example_matrix, hessian


def naive(weight: Tensor, bits: int, block: int, moments: Tensor) -> Tensor:
    """Optimal brain quantisation in the order of the diagonal, with an inverse for every column."""
    most = 2**bits - 1
    parts = weight.reshape(len(weight), -1, block)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = ((high - low) / most).half().float().repeat_interleave(block, 1).double()
    zero = (-low.repeat_interleave(block, 1) / scale).round().clamp(0, most)
    moments = moments / moments.diagonal().mean()
    moments = moments + 0.01 * torch.eye(len(moments), dtype=torch.float64)
    left, result = weight.double().clone(), torch.empty_like(weight)
    rest = torch.argsort(moments.diagonal(), descending=True, stable=True)
    while len(rest):
        inverse, i = torch.linalg.inv(moments[rest][:, rest]), rest[0]
        code = (left[:, i] / scale[:, i] + zero[:, i]).round().clamp(0, most)
        value = (code - zero[:, i]) * scale[:, i]
        result[:, i] = value.float()
        error = (left[:, i] - value) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0]
        rest = rest[1:]
    return result


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_plain_is_what_a_naive_one_gives(bits: int) -> None:
    weight, moments = example_matrix(QUERY)[:48], hessian(256)
    rows = gptq.plain(weight, bits, moments)
    values = torch.from_numpy(rows.dequantised())
    expected = naive(weight, bits, 128, moments)
    # A rounding that is all but a tie may go the other way in float32, and moves what follows it.
    same = (values - expected).abs() < 1e-5 * weight.abs().max()
    assert same.float().mean() > 0.97
    assert error_of(rows, weight, moments) == pytest.approx(
        float(((weight - expected) @ moments.float() * (weight - expected)).sum())
        / float((weight @ moments.float() * weight).sum()),
        rel=0.02,
    )


@pytest.mark.parametrize("bits", (2, 3, 4, 5, 6, 8))
def test_better_than_rounding_to_nearest(bits: int) -> None:
    weight, moments = example_matrix(QUERY), hessian(256)
    nearest = error_of(
        round_to_nearest.quantise_rows(weight, Recipe(bits), moments), weight, moments
    )
    rows = gptq.quantise_rows(weight, Recipe(bits), moments)
    assert error_of(rows, weight, moments) < 0.5 * nearest


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_every_part_pays(bits: int) -> None:
    """Each step down this list lowers the error of the output."""
    weight, moments = example_matrix(), hessian(640)
    found = [
        gptq.plain(weight, bits, moments),
        gptq.quantise_rows(weight, Recipe(bits, outliers=0), moments, refine=False),
        gptq.quantise_rows(weight, Recipe(bits), moments, refine=False),
        gptq.quantise_rows(weight, Recipe(bits), moments),
    ]
    errors = [error_of(rows, weight, moments) for rows in found]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < (0.5, 0.75, 0.85)[bits - 2] * errors[0]


def test_stored_scales_cost_little() -> None:
    weight, moments = example_matrix(), hessian(640)
    coded, wide = (
        error_of(gptq.quantise_rows(weight, Recipe(3, scale_kind=kind), moments), weight, moments)
        for kind in (0, 1)
    )
    assert coded < 1.02 * wide


def test_same_bytes_on_one_thread_and_two() -> None:
    before = torch.get_num_threads()
    found = set()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            rows = gptq.quantise_rows(example_matrix(QUERY)[:48], Recipe(3), hessian(256))
            found.add(bits_of(rows))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (40, 200)])
def test_odd_shapes_pack(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for recipe in (Recipe(2, 32, zeros=True), Recipe(3), Recipe(8, 64), Recipe(4, scale_kind=2)):
        rows = gptq.quantise_rows(weight, recipe, hessian(shape[1], 300))
        (back,) = unpack(pack([QuantizedMatrix((rows,))]))
        assert (back.dequantised() == rows.dequantised()).all()
        assert error_of(rows, weight, hessian(shape[1], 300)) < 0.2


def test_fewer_samples_than_columns_and_dead_columns() -> None:
    weight = example_matrix(QUERY)
    moments = hessian(256, 40).clone()
    moments[:, 10:20] = 0
    moments[10:20] = 0
    rows = gptq.quantise_rows(weight, Recipe(3), moments)
    assert error_of(rows, weight, moments) < 0.02
    # What no sample told about is not thrown away.
    dead = torch.from_numpy(rows.dequantised())[:, 10:20] - weight[:, 10:20]
    assert dead.square().sum() < 0.3 * weight[:, 10:20].square().sum()
    nothing = gptq.quantise_rows(weight, Recipe(3), torch.zeros(256, 256))
    assert error_of(nothing, weight) < 0.05


def test_a_hessian_that_is_not_one_is_damped_or_refused() -> None:
    indefinite = hessian(256).clone()
    indefinite -= 0.3 * indefinite.diagonal().mean() * torch.eye(256, dtype=torch.float64)
    weight = example_matrix(QUERY)
    assert error_of(gptq.quantise_rows(weight, Recipe(4), indefinite), weight) < 0.1
    with pytest.raises(ExportError, match="not finite"):
        gptq.quantise_rows(weight, Recipe(4), torch.full((256, 256), float("nan")))
    with pytest.raises(ExportError, match="shape"):
        gptq.quantise_rows(weight, Recipe(4), torch.eye(255))


def test_constant_and_zero_rows() -> None:
    weight = torch.zeros(20, 256)
    weight[1] = 0.25
    weight[2, ::2] = -3.0
    weight[3] = example_matrix(QUERY)[3] * 1e6
    values = torch.from_numpy(gptq.quantise_rows(weight, Recipe(4), hessian(256)).dequantised())
    assert torch.equal(values[0], torch.zeros(256)) and torch.isfinite(values).all()
    for i in (1, 2, 3):
        assert (values[i] - weight[i]).norm() < 0.2 * weight[i].norm()


def test_factor_is_the_inverse_s() -> None:
    found = factored(hessian(300), 0.01)
    inverse = torch.linalg.inv(found.damped.double())
    factor = found.factor.double()
    assert torch.allclose(factor.T @ factor, inverse, atol=1e-5 * float(inverse.abs().max()))
    assert torch.equal(factor, factor.triu())
    matrix = hessian(300) + torch.eye(300)
    assert torch.allclose(cholesky(matrix), torch.linalg.cholesky(matrix), rtol=1e-9)
    assert cholesky(-matrix) is None
