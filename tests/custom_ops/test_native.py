"""The vector functions in every instruction set of this machine, against float64 and numpy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

Array = np.ndarray
Probe = Callable[..., None]


def apply(probe: Probe, name: str, values: Array, out: type = np.float32) -> Array:
    padded = np.concatenate([values, np.zeros(-len(values) % 16, values.dtype)])
    result = np.empty(len(padded), out)
    probe(name, padded, result, len(padded))
    return result[: len(values)]


EXACT = {
    "exp": np.exp,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_functions_are_within_a_few_units_in_the_last_place(probe: Probe, name: str) -> None:
    dense = np.linspace(-12, 12, 100_003, dtype=np.float32)
    near_zero = np.geomspace(1e-30, 1, 5_000, dtype=np.float32)
    wide = np.linspace(-87, 87, 20_001, dtype=np.float32)
    x = np.concatenate([dense, near_zero, -near_zero, wide])
    exact = EXACT[name](x.astype(np.float64))
    found = apply(probe, name, x).astype(np.float64)
    error = np.abs(found - exact) / np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
    assert error.max() < 5 * np.finfo(np.float32).eps, x[error.argmax()]


def test_functions_at_the_ends(probe: Probe) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([-inf, -200, -104, 0, 88.7, 89, 200, inf, nan], np.float32)
    found = apply(probe, "exp", x)
    with np.errstate(over="ignore"):
        expected = np.exp(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-44)
    np.testing.assert_array_equal(apply(probe, "sigmoid", x)[[0, 7]], [0, 1])
    np.testing.assert_array_equal(apply(probe, "tanh", x)[[0, 3, 7]], [-1, 0, 1])
    np.testing.assert_array_equal(apply(probe, "erf", x)[[0, 3, 7]], [-1, 0, 1])
    for name in ("sigmoid", "tanh", "erf"):
        assert np.isnan(apply(probe, name, x)[-1])


def test_every_half_is_read_exactly(probe: Probe) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    found = apply(probe, "from_half", halves)
    np.testing.assert_array_equal(found, halves.view(np.float16).astype(np.float32))


def test_halves_are_rounded_to_nearest_even(probe: Probe) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = np.unique(halves[np.isfinite(halves)]).astype(np.float32)
    between = (finite[1:] + finite[:-1]) / 2  # ties
    x = np.concatenate(
        [finite, between, np.nextafter(between, np.float32(9e9)), np.nextafter(between, -between)]
    )
    edges = [np.inf, -np.inf, np.nan, 65519.996, 65520, 1e30, -1e30, 1e-40, 2.9802322e-08, 3e-8]
    x = np.concatenate([x, np.array(edges, np.float32)])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    found = apply(probe, "to_half", x, np.uint16).view(np.float16)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    real = ~np.isnan(expected)
    np.testing.assert_array_equal(found[real], expected[real])


def test_lanes_are_reduced_and_parts_touch_nothing_else(probe: Probe) -> None:
    lanes = np.zeros(1, np.uint64)
    probe("lanes", lanes)
    count = int(lanes[0])
    values = np.arange(1, 17, dtype=np.float32)
    for name, expected in (("sum", values[:count].sum()), ("largest", values[count - 1])):
        found = np.zeros(1, np.float32)
        probe(name, values, found)
        assert found[0] == expected
    halves = values.astype(np.float16)
    for n in range(count):
        out = np.full(16, -1, np.float32)
        probe("parts", halves, out, n)
        np.testing.assert_array_equal(out[:n], values[:n])
        assert (out[n:] == -1).all()
