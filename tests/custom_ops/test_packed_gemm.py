"""Many x rows times packed weights, on every instruction set: what float64 gives, and the same as
one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.custom_ops.packed_weights import BLOCKS, MOST_SHIFT, WIDTHS, pack
from tests.custom_ops.packed_cases import random_matrix
from tests.custom_ops.packed_products import MAKE_UPS, bound, exact_x, terms

Array = NDArray[Any]
Op = Callable[..., "SingleOp"]  # type: ignore[name-defined]  # noqa: F821 - from conftest.py
Product = Callable[[Array, Array], Array]

# Full tiles of 2, 4, 6 and 7 rows and what is left over; from 128 on cut for two threads.
X_ROWS = (8, 9, 13, 14, 31, 64, 130)
# Both sides of a strip, of a pair of strips and of a group of eight.
ROWS = (1, 16, 17, 47, 129, 150)
# Both sides of a step (32), a chunk of outliers (64), a block, and a piece of K (2048).
COLUMNS = (7, 32, 63, 96, 161, 320, 2048, 2081, 2300)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_many_rows_equal_float64(bits: int, block: int, product: Product) -> None:
    rng = np.random.default_rng(10 * bits + block)
    for make_up in MAKE_UPS:
        rows, columns, m = (int(rng.choice(sizes)) for sizes in (ROWS, COLUMNS, X_ROWS))
        matrix = random_matrix(rng, [(rows, bits)], columns, block, **vars(make_up))
        x = rng.standard_normal((m, columns)).astype(np.float32)
        exact, magnitude = terms(x, matrix)
        error = np.abs(product(x, pack([matrix])) - exact)
        assert (error <= bound(magnitude, matrix)).all(), (make_up, rows, columns, m)


@pytest.mark.parametrize("bits", WIDTHS)
def test_powers_of_two_lose_nothing_and_equal_single_rows(bits: int, product: Product) -> None:
    rng = np.random.default_rng(bits)
    for i, make_up in enumerate(MAKE_UPS):
        rows, columns, block = (int(rng.choice(sizes)) for sizes in (ROWS, COLUMNS[:6], BLOCKS))
        options = vars(make_up) | {"exact": True, "column_scale": False}
        matrix = random_matrix(rng, [(rows, bits)], columns, block, **options)
        x, blob = exact_x(rng, X_ROWS[i % 5], matrix), pack([matrix])
        found = product(x, blob)
        np.testing.assert_array_equal(found, terms(x, matrix)[0], str(make_up))
        for m in (0, len(x) // 2, len(x) - 1):
            np.testing.assert_array_equal(product(x[m : m + 1], blob)[0], found[m], str(make_up))


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_shift_and_half_step(bits: int, product: Product) -> None:
    rng = np.random.default_rng(20 + bits)
    for shift in range(MOST_SHIFT[bits] + 1):
        for half in {False, shift > 0}:
            options = {"shift": shift, "half": half, "outliers": 0.05, "exact": True}
            matrix = random_matrix(rng, [(33, bits)], 130, 64, **options)
            x = exact_x(rng, 11, matrix)
            found = product(x, pack([matrix]))
            np.testing.assert_array_equal(found, terms(x, matrix)[0], f"{shift} {half}")


def test_a_group_of_strips_may_be_of_many_segments(product: Product) -> None:
    """Pairs of strips differ in width, zero points are the whole matrix's."""
    rng = np.random.default_rng(40)
    for make_up in MAKE_UPS:
        segments = [(int(rng.integers(1, 36)), int(rng.choice(WIDTHS))) for _ in range(12)]
        matrix = random_matrix(rng, segments, 300, 128, **vars(make_up))
        x = rng.standard_normal((29, 300)).astype(np.float32)
        exact, magnitude = terms(x, matrix)
        error = np.abs(product(x, pack([matrix])) - exact)
        assert (error <= bound(magnitude, matrix)).all(), (make_up, segments)


def test_the_largest_sums_fit(product: Product) -> None:
    """Codes and x at their ends in every place, all of one sign."""
    rng = np.random.default_rng(41)
    for bits in WIDTHS:
        for code in (0, (1 << bits) - 1):
            matrix = random_matrix(rng, [(16, bits)], 256, 128, exact=True)
            matrix.segments[0].codes[:] = code
            x = np.full((9, 256), 127, np.float32)
            x[::2] = -127
            found = product(x, pack([matrix]))
            np.testing.assert_array_equal(found, terms(x, matrix)[0], f"{bits} {code}")
