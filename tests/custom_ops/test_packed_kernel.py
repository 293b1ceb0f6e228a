"""Every instruction set's product with a packed weight against the reference, over all that a
packed weight may be made of, and over what it may not."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.packed_reference import packed_product
from edgewright.custom_ops.packed_weights import BLOCKS, WIDTHS, QuantizedMatrix, pack
from tests.custom_ops import emulated
from tests.custom_ops.packed_cases import random_matrix
from tests.custom_ops.packed_products import MAKE_UPS, bound, exact_x, terms

Array = NDArray[Any]
Op = Callable[..., "SingleOp"]  # type: ignore[name-defined]  # noqa: F821 - from conftest.py
Product = Callable[[Array, Array], Array]

# Both sides of a step of codes (32), a chunk of outliers (64), a block and a piece of blocks.
COLUMNS = (1, 31, 32, 33, 64, 95, 97, 130, 255, 258, 520, 1100)
ROWS = (1, 5, 15, 16, 17, 33, 50)
X_ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 17)


def check(product: Product, x: Array, matrix: QuantizedMatrix, blob: Array, case: object) -> None:
    check_terms(product(x, blob), *terms(x, matrix), matrix, case)


def check_terms(
    found: Array, exact: Array, magnitude: Array, matrix: QuantizedMatrix, case: object
) -> None:
    error = np.abs(found - exact)
    assert found.shape == exact.shape and (error <= bound(magnitude, matrix)).all(), case


def at_offset(blob: Array, offset: int) -> Array:
    room = np.zeros(blob.size + 128, np.uint8)
    begin = -room.ctypes.data % 64 + offset
    room[begin : begin + blob.size] = blob
    return room[begin : begin + blob.size]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_make_up_equals_float64(bits: int, block: int, product: Product) -> None:
    rng = np.random.default_rng(100 * bits + block)
    for i, make_up in enumerate(MAKE_UPS):
        rows, columns = (int(rng.choice(sizes)) for sizes in (ROWS, COLUMNS))
        matrix = random_matrix(rng, [(rows, bits)], columns, block, **vars(make_up))
        blob = at_offset(pack([matrix]), i % 3)
        for m in rng.choice(X_ROWS, 4, replace=False):
            x = rng.standard_normal((m, columns)).astype(np.float32) * np.float32(2.0 ** (i - 3))
            check(product, x, matrix, blob, (make_up, rows, columns, m))


@pytest.mark.parametrize("bits", WIDTHS)
def test_powers_of_two_lose_nothing(bits: int, product: Product) -> None:
    rng = np.random.default_rng(bits)
    for i, make_up in enumerate(MAKE_UPS):
        rows, columns, block = (int(rng.choice(sizes)) for sizes in (ROWS, COLUMNS[4:], BLOCKS))
        options = vars(make_up) | {"exact": True, "column_scale": False}
        matrix = random_matrix(rng, [(rows, bits)], columns, block, **options)
        x = exact_x(rng, 1 + 3 * i, matrix)
        expected = terms(x, matrix)[0]
        case = (make_up, rows, columns, block)
        np.testing.assert_array_equal(expected, expected.astype(np.float32), str(case))
        np.testing.assert_array_equal(product(x, pack([matrix])), expected, str(case))
        reference = packed_product(torch.from_numpy(x), matrix).numpy()
        np.testing.assert_array_equal(reference, expected, str(case))


def test_segments_of_any_width_stand_below_one_another(product: Product) -> None:
    rng = np.random.default_rng(3)
    for i, make_up in enumerate(MAKE_UPS):
        count = (2, 3, 6, 64)[i % 4]
        segments = [(int(rng.integers(1, 40)), int(rng.choice(WIDTHS))) for _ in range(count)]
        matrix = random_matrix(rng, segments, 200, BLOCKS[i % 3], **vars(make_up))
        for m in (1, 3, 8, 20):
            x = rng.standard_normal((m, 200)).astype(np.float32)
            check(product, x, matrix, pack([matrix]), (make_up, segments, m))


@cache
def large(bits: int) -> tuple[QuantizedMatrix, Array, list[tuple[Array, Array, Array]]]:
    """A matrix, its blob, and some x each with its terms, for every instruction set."""
    rng = np.random.default_rng(4)
    matrix = random_matrix(rng, [(700, bits)], 4200, 128, outliers=0.005)
    given = [rng.standard_normal((m, 4200)).astype(np.float32) for m in (1, 2, 130)]
    return matrix, pack([matrix]), [(x, *terms(x, matrix)) for x in given]


@pytest.mark.parametrize("bits", WIDTHS)
def test_many_rows_are_shared_among_tasks(bits: int, product: Product) -> None:
    matrix, blob, given = large(bits)
    for x, exact, magnitude in given:
        check_terms(product(x, blob), exact, magnitude, matrix, (bits, len(x)))


def test_not_a_number_stays_in_its_row(product: Product) -> None:
    rng = np.random.default_rng(5)
    matrix = random_matrix(rng, [(20, 4)], 150, 64, outliers=0.01)
    blob = pack([matrix])
    for m in (2, 9):
        x = rng.standard_normal((m, 150)).astype(np.float32)
        usual = product(x, blob)
        for value in (np.nan, np.inf, -np.inf):
            x[1, 149] = value
            found = product(x, blob)
            assert np.isnan(found[1]).all()
            np.testing.assert_array_equal(found[0], usual[0])


def test_what_is_almost_zero_is_zero(product: Product) -> None:
    matrix = random_matrix(np.random.default_rng(6), [(20, 3)], 70, 32)
    for value in (0.0, 2.0**-101, -1e-40):
        found = product(np.full((2, 70), value, np.float32), pack([matrix]))
        np.testing.assert_array_equal(found, np.zeros((2, 20)))


def test_large_x_is_quantised_as_in_the_reference(product: Product) -> None:
    """Scales at both ends of float32, and values halfway between two integers."""
    rng = np.random.default_rng(7)
    matrix = random_matrix(rng, [(16, 8)], 128, 32, kind=2, exact=True)
    x = exact_x(rng, 6, matrix)
    x[0] *= np.float32(2.0**110)
    x[1] *= np.float32(2.0**-100)
    x[2:4] = rng.integers(-254, 255, (2, 128)) / 2
    x[2:4, ::32] = 127
    x[4:] = rng.standard_normal((2, 128)) * 1e30
    check(product, x, matrix, pack([matrix]), None)


@pytest.fixture
def guarded() -> Iterator[Callable[[Array], Array]]:
    """blob → the same bytes with pages before and behind them that nobody may read."""
    if emulated.ROOT or sys.platform != "linux":
        yield lambda blob: blob
        return
    page = mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    room = mmap.mmap(-1, 64 * page)
    memory = np.frombuffer(room, np.uint8)
    ends = (memory.ctypes.data, memory.ctypes.data + 63 * page)
    for end in ends:
        assert protect(end, page, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0) == 0

    def place(blob: Array) -> Array:
        assert blob.size <= 62 * page
        inside = memory[63 * page - blob.size : 63 * page]
        inside[:] = blob
        return inside

    yield place
    for end in ends:
        assert protect(end, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_damaged_bytes_read_nothing_else(
    product: Product, guarded: Callable[[Array], Array]
) -> None:
    rng = np.random.default_rng(8)
    refused = 0
    for make_up in MAKE_UPS:
        segments = [(20, 3), (17, 4), (3, 8), (9, 5)]
        blob = pack([random_matrix(rng, segments, 100, 32, **vars(make_up))])
        for trial in range(60):
            broken = blob.copy()
            area = 128 if trial % 2 else blob.size
            for _ in range(int(rng.integers(1, 4))):
                broken[rng.integers(area)] = rng.integers(256)
            if trial % 10 == 0:
                broken = broken[: rng.integers(1, blob.size)]
            x = rng.standard_normal((int(rng.choice((1, 2, 9))), 100)).astype(np.float32)
            try:
                product(x, guarded(broken))
            except (InvalidArgument, RuntimeError) as error:
                assert "BlockMatMul: " in str(error)
                refused += 1
    assert refused > 50


def test_a_column_that_is_none_is_the_first(product: Product) -> None:
    rng = np.random.default_rng(12)
    matrix = random_matrix(rng, [(20, 3)], 100, 32, column_order=True, exact=True)
    blob, order = pack([matrix]), matrix.column_order
    assert order is not None
    x = exact_x(rng, 3, matrix)
    blob[128:].view("<u4")[70] = 100  # the order begins the section
    order[70] = 0
    np.testing.assert_array_equal(product(x, blob), terms(x, matrix)[0])


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGUF", "does not begin with EWPM"),
        (4, b"\2", "of a version"),
        (8, b"\2", "its matrices need"),
        (12, b"\1", "segment"),
        (16, b"\0", "no values"),
        (20, b"\3", "wrong blocks"),
        (24, b"\0", "no or too many segments"),
        (24, b"\xff\xff\xff\xff", "no or too many segments"),
        (32, b"\1", "not as long as it says"),
        (40, b"\1\0\0\0\0\0\0\x80", "its outliers need"),
        (68, b"\7", "wrong make-up"),
        (71, b"\4", "wrong make-up"),
    ],
)
def test_damage_is_named(
    at: int, value: bytes, message: str, library: Library, single_op: Op
) -> None:
    blob = pack([random_matrix(np.random.default_rng(9), [(20, 3)], 100, 32)])
    blob[at : at + len(value)] = np.frombuffer(value, np.uint8)
    op = single_op("BlockMatMul", {"x": np.ones((2, 100), np.float32), "weight": blob})
    with pytest.raises(InvalidArgument, match=f"BlockMatMul: the packed weight .*{message}"):
        op.run(library)


def test_misfitting_x_is_refused(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(10)
    one = random_matrix(rng, [(20, 3)], 100, 32)
    for x_columns, stack in ((99, [one]), (100, [one, one])):
        inputs = {"x": np.ones((2, x_columns), np.float32), "weight": pack(stack)}
        with pytest.raises(InvalidArgument, match=f"x has {x_columns} columns"):
            single_op("BlockMatMul", inputs).run(library)


def test_leading_dimensions_are_kept(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(11)
    matrix = random_matrix(rng, [(6, 4)], 40, 32)
    for shape in ((40,), (2, 3, 40), (0, 4, 40)):
        x = rng.standard_normal(shape).astype(np.float32)
        found = single_op("BlockMatMul", {"x": x, "weight": pack([matrix])}).run(library)[0]
        assert found.shape == (*shape[:-1], 6)
        expected = packed_product(torch.from_numpy(x.reshape(-1, 40)), matrix).numpy()
        np.testing.assert_allclose(found.reshape(-1, 6), expected, rtol=1e-4, atol=1e-6)
