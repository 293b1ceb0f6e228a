"""BlockMatMul: reference, body and every instruction set's kernel agree, to float32 rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.torch_ops import block_matmul

Array = np.ndarray
Op = Callable[..., "SingleOp"]  # type: ignore[name-defined]  # noqa: F821 - from conftest.py

WEIGHT_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Odd ones, both sides of a vector, a panel (32), a block (128), a chunk (512) and a piece (2048).
SHAPES = [
    (1, 1), (3, 1), (1, 17), (33, 3), (17, 16), (31, 255), (130, 17), (255, 129), (5, 1003),
    (300, 512), (64, 2050), (3, 4100),
]  # fmt: skip
ROWS = [0, 1, 2, 3, 4, 5, 23, 24, 33, 49, 130]


def bound(x: Array, weight: Array) -> Array:
    """What float32 rounding may do to a sum: half an epsilon of the magnitudes for each step, and
    random signs let K steps count as sqrt(K)."""
    magnitude = np.abs(x) @ np.abs(weight).T
    depth = 4 + np.sqrt(x.shape[-1])
    return magnitude * depth * np.finfo(np.float32).eps / 2 + np.finfo(np.float32).tiny


def arrays(rng: np.random.Generator, m: int, n: int, k: int, dtype: str) -> tuple[Array, Array]:
    x = rng.standard_normal((m, k)).astype(np.float32)
    return x, rng.standard_normal((n, k)).astype(WEIGHT_DTYPES[dtype])


@pytest.mark.parametrize("dtype", list(WEIGHT_DTYPES))
def test_kernel_equals_float64(
    dtype: str, isa: str, library: Library, single_op: Op, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for i, (n, k) in enumerate(SHAPES):
        _, weight = arrays(rng, 1, n, k, dtype)
        # One session, all row counts; every other weight begins at an odd multiple of its size.
        folder = tmp_path / str(i)
        folder.mkdir()
        misaligned = weight.dtype.itemsize * (i % 2)
        x = rng.standard_normal((ROWS[-1], k)).astype(np.float32)
        op = single_op(
            "BlockMatMul",
            {"x": x, "weight": weight},
            stored=("weight",),
            folder=folder,
            misaligned=misaligned,
            symbolic=("x",),
        )
        session = op.session(library, isa, threads=1 + i % 2)
        wide = weight.astype(np.float64)
        for m in ROWS:
            found = session.run(None, {"x": x[:m]})[0]
            error = np.abs(found - x[:m].astype(np.float64) @ wide.T)
            assert (error <= bound(x[:m], wide)).all(), (m, n, k)


@pytest.mark.parametrize("dtype", list(WEIGHT_DTYPES))
def test_reference_and_body_equal_float64(dtype: str, single_op: Op) -> None:
    rng = np.random.default_rng(2)
    for n, k in SHAPES[:8]:
        x, weight = arrays(rng, 5, n, k, dtype)
        exact = x.astype(np.float64) @ weight.astype(np.float64).T
        op = single_op("BlockMatMul", {"x": x, "weight": weight}, stored=("weight",))
        raw = torch.from_numpy(weight.view(np.uint16 if dtype != "float32" else np.float32))
        reference = block_matmul(torch.from_numpy(x), raw.view(getattr(torch, dtype)))
        for found in (op.run(None)[0], reference.numpy()):
            assert (np.abs(found - exact) <= bound(x, weight.astype(np.float64))).all(), (n, k)


def test_leading_dimensions_are_kept(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((6, 5)).astype(np.float32)
    for shape in ((5,), (2, 3, 5), (1, 2, 1, 5), (0, 4, 5)):
        x = rng.standard_normal(shape).astype(np.float32)
        found = single_op("BlockMatMul", {"x": x, "weight": weight}).run(library)[0]
        np.testing.assert_allclose(found, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_no_columns_give_zeros_and_no_rows_nothing(library: Library, single_op: Op) -> None:
    empty = {"x": np.empty((3, 0), np.float32), "weight": np.empty((4, 0), np.float32)}
    np.testing.assert_array_equal(single_op("BlockMatMul", empty).run(library)[0], np.zeros((3, 4)))
    none = {"x": np.ones((3, 2), np.float32), "weight": np.empty((0, 2), np.float32)}
    assert single_op("BlockMatMul", none).run(library)[0].shape == (3, 0)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (4, 5)), ((2, 3), (3,)), ((2, 3), (1, 4, 3)), ((), (2, 1))]
)
def test_misfitting_shapes_are_refused(
    shapes: tuple[tuple[int, ...], ...], library: Library, single_op: Op
) -> None:
    x, weight = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(InvalidArgument, match="BlockMatMul: x has"):
        single_op("BlockMatMul", {"x": x, "weight": weight}).run(library)


def test_nan_and_infinity_pass_through(library: Library, single_op: Op) -> None:
    x = np.ones((2, 40), np.float32)
    x[0, 3], x[1, 39] = np.nan, np.inf
    weight = np.ones((3, 40), np.float16)
    found = single_op("BlockMatMul", {"x": x, "weight": weight}).run(library)[0]
    assert np.isnan(found[0]).all() and np.isposinf(found[1]).all()
