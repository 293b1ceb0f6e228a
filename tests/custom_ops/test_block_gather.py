"""BlockGather's kernel in every instruction set, bit for bit what the packed rows stand for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.packed_weights import WIDTHS, QuantizedMatrix, pack
from tests.custom_ops.packed_cases import random_matrix

Array = NDArray[Any]
Op = Callable[..., Any]

SIZES = [(1, 1, 32), (15, 31, 64), (16, 32, 32), (17, 65, 64), (40, 130, 128), (33, 416, 128)]
MAKES = list(itertools.product((False, True), (None, 0.03), (False, True), (0, 1, 2)))


@cache
def matrices(bits: int) -> list[QuantizedMatrix]:
    """Every make-up once, and every size."""
    rng = np.random.default_rng(bits)
    halves = itertools.cycle((False, True))
    cases = zip(itertools.cycle(SIZES), MAKES, halves, strict=False)
    found = [
        random_matrix(
            rng,
            [(rows, bits)],
            columns,
            block,
            column_scale=column_scale,
            column_order=kind == bits % 3,
            kind=kind,
            zeros=zeros,
            outliers=outliers,
            half=half,
        )
        for (rows, columns, block), (zeros, outliers, column_scale, kind), half in cases
    ]
    others = [(19, bits), (1, WIDTHS[bits % 3]), (48, 8), (7, 3)]
    of_columns = {"column_scale": True, "column_order": True}
    segments = random_matrix(rng, others, 200, 64, outliers=0.1, **of_columns)
    crowded = random_matrix(rng, [(35, bits)], 97, 32, outliers=0.2, zeros=True)
    zeros = rng.integers(0, 256, (35, 4)).astype(np.uint8)  # imported ones may be any
    far = QuantizedMatrix((replace(crowded.segments[0], zeros=zeros, half=bits < 8),), None)
    return [*found, segments, crowded, far]


@pytest.mark.parametrize("bits", WIDTHS)
def test_kernel(bits: int, isa: str, tmp_path: Path, single_op: Op, library: Library) -> None:
    for i, matrix in enumerate(matrices(bits)):
        folder = tmp_path / str(i)
        folder.mkdir()
        inputs = {"ids": np.zeros(1, np.int64), "weight": pack([matrix])}
        op = single_op("BlockGather", inputs, {}, ("weight",), ("ids",), folder, misaligned=i % 3)
        session = op.session(library, isa, threads=1 + i % 2)
        wanted = matrix.dequantised()
        rng = np.random.default_rng(i)
        for ids in (rng.permutation(matrix.rows), rng.integers(0, matrix.rows, 150)):
            np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], wanted[ids])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 1, 3), (1,) * 7], ids=str)
def test_any_shape_of_ids(shape: tuple[int, ...], library: Library, single_op: Op) -> None:
    matrix = random_matrix(np.random.default_rng(1), [(40, 4)], 70)
    ids = np.random.default_rng(2).integers(0, 40, shape)
    op = single_op("BlockGather", {"ids": np.asarray(ids), "weight": pack([matrix])})
    np.testing.assert_array_equal(op.run(library)[0], matrix.dequantised()[ids])


@pytest.mark.parametrize("wrong", [-1, 40, 2**62])
def test_an_id_that_does_not_exist_is_refused(wrong: int, library: Library, single_op: Op) -> None:
    matrix = random_matrix(np.random.default_rng(1), [(40, 4)], 64)
    inputs = {"ids": np.array([[0, 39], [wrong, 1]]), "weight": pack([matrix])}
    with pytest.raises(InvalidArgument, match=rf"BlockGather: id 2 is {wrong}; .* rows 0 to 39"):
        single_op("BlockGather", inputs).run(library)


def test_a_column_that_is_none_is_left_out(isa: str, library: Library, single_op: Op) -> None:
    matrix = random_matrix(np.random.default_rng(1), [(40, 4)], 64, column_order=True)
    blob, wanted = pack([matrix]), matrix.dequantised()
    assert matrix.column_order is not None
    blob[128:].view("<u4")[5] = 64  # the order begins the section
    wanted[:, matrix.column_order[5]] = 0
    op = single_op("BlockGather", {"ids": np.arange(40), "weight": blob})
    np.testing.assert_array_equal(op.run(library, isa)[0], wanted)


def test_a_stack_is_refused(library: Library, single_op: Op) -> None:
    matrix = random_matrix(np.random.default_rng(1), [(40, 4)], 64)
    inputs = {"ids": np.zeros(1, np.int64), "weight": pack([matrix, matrix])}
    with pytest.raises(InvalidArgument, match=r"has 2 matrices; one is required"):
        single_op("BlockGather", inputs).run(library)
