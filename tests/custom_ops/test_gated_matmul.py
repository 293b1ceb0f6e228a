"""GatedMatMul: reference and every instruction set's kernel agree with float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.gated_matmul.reference import reference
from edgewright.custom_ops.packed_weights import BLOCKS, WIDTHS, QuantizedMatrix, pack
from tests.custom_ops.packed_cases import random_matrix
from tests.custom_ops.packed_products import MAKE_UPS, bound, terms

Array = NDArray[Any]
Op = Callable[..., "SingleOp"]  # type: ignore[name-defined]  # noqa: F821 - from conftest.py

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}
# Odd ones let a strip hold the end of gate and the beginning of up.
INNER = (1, 5, 16, 24, 37, 130, 300)
X_ROWS = (0, 1, 2, 7, 8, 33, 130)
EPS = np.finfo(np.float32).eps


def expected(x: Array, matrix: QuantizedMatrix, activation: str) -> tuple[Array, Array]:
    """In float64: y, and how far float32 may be from it."""
    exact, magnitude = terms(x, matrix)
    gate, up = np.split(exact, 2, axis=1)
    gate_error, up_error = np.split(bound(magnitude, matrix), 2, axis=1)
    act = ACTIVATIONS[activation](torch.from_numpy(gate)).numpy()
    # No activation is steeper than 1.2; its own error is a few eps of what goes in.
    act_error = 1.2 * gate_error + 8 * EPS * np.abs(gate)
    return act * up, act_error * (np.abs(up) + up_error) + np.abs(act) * (
        up_error + EPS * np.abs(up)
    )


def x_for(rng: np.random.Generator, rows: int, matrix: QuantizedMatrix) -> Array:
    """Such that gates come out around one, where activations bend."""
    x = rng.standard_normal((max(rows, 1), matrix.columns)).astype(np.float32)
    size = np.abs(terms(x, matrix)[0]).mean() + 1e-30
    return (x * np.float32(2 / size))[:rows]


def segments_of(rng: np.random.Generator, inner: int, many: bool) -> list[tuple[int, int]]:
    """Of [gate; up]: one, or several that know nothing of the halves."""
    if not many or inner < 3:
        return [(2 * inner, int(rng.choice(WIDTHS)))]
    cuts = sorted(rng.choice(np.arange(1, 2 * inner), 3, replace=False))
    sizes = np.diff([0, *cuts, 2 * inner])
    return [(int(size), int(rng.choice(WIDTHS))) for size in sizes]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_kernel_equals_float64(
    threads: int, activation: str, isa: str, library: Library, single_op: Op
) -> None:
    rng = np.random.default_rng(threads)
    inputs = {"x": np.zeros((1, 1), np.float32), "weight": np.zeros(1, np.uint8)}
    op = single_op("GatedMatMul", inputs, {"activation": activation}, symbolic=("x", "weight"))
    session = op.session(library, isa, threads=threads)
    for i, inner in enumerate(INNER):
        make_up = MAKE_UPS[i]
        columns = int(rng.choice((1, 33, 64, 130, 260)))
        segments = segments_of(rng, inner, many=i % 2 == 1)
        matrix = random_matrix(rng, segments, columns, BLOCKS[i % 3], **vars(make_up))
        blob = pack([matrix])
        for m in X_ROWS:
            x = x_for(rng, m, matrix)
            found = session.run(None, {"x": x, "weight": blob})[0]
            assert found.shape == (m, inner)
            if m == 0:
                continue
            exact, error = expected(x, matrix, activation)
            assert (np.abs(found - exact) <= error).all(), (make_up, segments, columns, m)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_reference_equals_float64(activation: str) -> None:
    rng = np.random.default_rng(5)
    for i, make_up in enumerate(MAKE_UPS):
        segments = segments_of(rng, INNER[i], many=True)
        matrix = random_matrix(rng, segments, 130, 64, **vars(make_up))
        x = x_for(rng, 4, matrix)
        found = reference(
            torch.from_numpy(x), torch.from_numpy(pack([matrix])), activation=activation
        )
        exact, error = expected(x, matrix, activation)
        assert (np.abs(found.numpy() - exact) <= error).all(), make_up


def test_a_long_prompt_is_cut_along_its_rows(isa: str, library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(6)
    matrix = random_matrix(rng, [(64, 4)], 64, 32)
    x = x_for(rng, 1200, matrix)
    inputs = {"x": x, "weight": pack([matrix])}
    op = single_op("GatedMatMul", inputs, {"activation": "silu"})
    exact, error = expected(x, matrix, "silu")
    assert (np.abs(op.run(library, isa, threads=2)[0] - exact) <= error).all()


def test_leading_dimensions_are_kept(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(7)
    matrix = random_matrix(rng, [(12, 4)], 40, 32)
    for shape in ((40,), (2, 3, 40), (0, 4, 40)):
        inputs = {"x": np.ones(shape, np.float32), "weight": pack([matrix])}
        found = single_op("GatedMatMul", inputs, {"activation": "gelu"}).run(library)[0]
        assert found.shape == (*shape[:-1], 6)


def test_what_does_not_fit_is_refused(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(8)
    even, odd = (random_matrix(rng, [(rows, 3)], 100, 32) for rows in (20, 21))
    for x_columns, stack in ((99, [even]), (100, [odd]), (100, [even, even])):
        inputs = {"x": np.ones((2, x_columns), np.float32), "weight": pack(stack)}
        with pytest.raises(InvalidArgument, match="GatedMatMul: x has"):
            single_op("GatedMatMul", inputs, {"activation": "silu"}).run(library)


def test_another_activation_is_refused(library: Library, single_op: Op) -> None:
    matrix = random_matrix(np.random.default_rng(9), [(4, 3)], 32, 32)
    inputs = {"x": np.ones((1, 32), np.float32), "weight": pack([matrix])}
    with pytest.raises(RuntimeException, match="unknown activation relu"):
        single_op("GatedMatMul", inputs, {"activation": "relu"}).run(library)
