"""Reference, body and kernel of CachedAttention against float64 and against transformers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgewright.custom_ops import OPS
from edgewright.custom_ops.cached_attention import reference as torch_reference
from edgewright.custom_ops.compiler import Library
from tests.custom_ops.cache_values import cached, held, unseen

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
EPSILON = float(np.finfo(np.float32).eps)
Arrays = dict[str, NDArray[Any]]
Op = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    heads: tuple[int, int]  # query heads, key/value heads
    dims: tuple[int, int]  # of keys, of values
    seq: int
    start: tuple[int, ...]
    length: tuple[int, ...]
    page: int = 0  # 0: one page a row, as long as the capacity
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    dtype: str = "float32"

    @property
    def attributes(self) -> dict[str, int | float]:
        scale = self.dims[0] ** -0.5
        return {
            "num_heads": self.heads[0],
            "scale": scale,
            "window": self.window,
            "softcap": self.softcap,
        }

    def arrays(self, seed: int = 0) -> Arrays:
        """Whatever may not be looked at is NaN, or a table entry far out of range."""
        rng = np.random.default_rng(seed)
        batch, (heads, kv_heads) = len(self.start), self.heads
        held = max(s + n for s, n in zip(self.start, self.length, strict=True))
        page = self.page or max(held, 1) + 5
        pages = -(-(held + 3) // page)
        table = np.arange(batch * pages) if not self.page else rng.permutation(batch * pages + 2)
        table = table[: batch * pages].reshape(batch, pages)
        arrays: Arrays = {"table": table.astype(np.int64)}
        for name, width, dim in (
            ("key", kv_heads, self.dims[0]),
            ("value", kv_heads, self.dims[1]),
        ):
            arrays[name] = _normal(rng, (batch, self.seq, width * dim))
            size = (batch * pages + 2 * bool(self.page), kv_heads, page, dim)
            pool = np.full(size, unseen(self.dtype), self.dtype)
            for row, start in enumerate(self.start):
                for position in range(start):
                    block = table[row, position // page]
                    rows = cached(_normal(rng, (kv_heads, dim)), self.dtype)
                    pool[block, :, position % page] = rows
            arrays[f"{name}_cache"] = pool
        arrays["query"] = _normal(rng, (batch, self.seq, heads * self.dims[0]))
        for row, count in enumerate(self.length):
            for name in ("query", "key", "value"):
                arrays[name][row, count:] = np.nan
            needed = max(-(-(self.start[row] + count) // page), 1)
            arrays["table"][row, needed:] = 10**12
        arrays["start"] = np.array(self.start, np.int64)
        arrays["length"] = np.array(self.length, np.int64)
        arrays["sinks"] = _normal(rng, (heads,)) if self.sinks else np.array([-np.inf], np.float32)
        return {tensor.name: arrays[tensor.name] for tensor in OPS["CachedAttention"].inputs}


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, np.float32)


HEADS = ((1, 1), (3, 1), (6, 2), (5, 5))
DIMS = ((20, 20), (33, 17), (64, 64), (80, 48))
STEPS = (  # seq, start, length
    (1, (0,), (1,)),
    (1, (5, 70, 0), (1, 1, 0)),
    (2, (129, 0), (1, 2)),
    (7, (3, 40), (7, 0)),
    (33, (0, 14, 100), (33, 20, 1)),
    (130, (0, 61), (130, 77)),
)
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"page": 16},
    {"page": 16, "window": 9, "sinks": True},
    {"window": 25, "softcap": 5.0},
    {"page": 16, "dtype": "float16", "sinks": True},
    {"dtype": "float16", "softcap": 3.0, "window": 64},
    {"page": 16, "dtype": "int8", "window": 40},
    {"dtype": "int8", "softcap": 5.0, "sinks": True},
)
# Every pair of settings meets: heads and dims turn at different rates against the rest.
CASES = [
    Case(HEADS[i % 4], DIMS[(i + i // 4) % 4], *steps, **variant)
    for i, (steps, variant) in enumerate(itertools.product(STEPS, VARIANTS))
]
# Contexts long enough for the kernel to split their keys among threads, or to have few rows of
# more than one step; 8 rows and 9 are on either side of its two ways of working.
CASES += [
    Case((8, 1), (64, 64), 1, (2100,), (1,), page=16, sinks=True),
    Case((3, 1), (20, 33), 2, (1500, 0, 3), (2, 1, 0)),
    Case((2, 1), (64, 64), 4, (1400,), (4,), window=1200, sinks=True),
    Case((3, 1), (64, 64), 3, (1100, 40), (3, 3), page=16, dtype="float16"),
    Case((1, 1), (80, 64), 130, (1300,), (130,), page=16, window=1030, softcap=4.0, sinks=True),
    Case((2, 2), (33, 33), 1, (8191,), (1,), dtype="float16"),
    Case((3, 1), (64, 64), 3, (1100, 40), (3, 3), page=16, dtype="int8"),
    Case((4, 4), (8, 9), 1, (1200,), (1,), page=16, dtype="int8"),
    Case((1, 1), (512, 257), 20, (9,), (20,)),
]


@dataclass(frozen=True)
class Expected:
    output: NDArray[np.float64]
    key_cache_out: NDArray[Any]
    value_cache_out: NDArray[Any]
    tolerance: float


@cache
def expected(case: Case) -> Expected:
    """Token by token and head by head in float64."""
    arrays = case.arrays()
    (heads, kv_heads), (dim, v_dim) = case.heads, case.dims
    scale = case.attributes["scale"]
    caches = {name: arrays[name].copy() for name in ("key_cache", "value_cache")}
    page = caches["key_cache"].shape[2]
    output = np.zeros((len(case.start), case.seq, heads, v_dim))
    worst = 0.0
    for row, (start, length) in enumerate(zip(case.start, case.length, strict=True)):
        position = np.arange(start + length)
        blocks, slots = arrays["table"][row, position // page], position % page
        for name, width in (("key", dim), ("value", v_dim)):
            new = arrays[name][row, :length].reshape(length, kv_heads, width)
            caches[f"{name}_cache"][blocks[start:], :, slots[start:]] = cached(new, case.dtype)
        for step, head in itertools.product(range(length), range(heads)):
            last = start + step
            seen = slice(max(0, last - case.window + 1) if case.window else 0, last + 1)
            at = blocks[seen], head // (heads // kv_heads), slots[seen]
            keys = held(caches["key_cache"][at])
            query = arrays["query"][row, step].reshape(heads, dim)[head].astype(np.float64)
            scores = keys @ query * scale
            worst = max(worst, float((np.abs(keys) @ np.abs(query)).max() * scale))
            if case.softcap:
                scores = case.softcap * np.tanh(scores / case.softcap)
            sink = float(np.broadcast_to(arrays["sinks"], heads)[head])
            peak = max(float(scores.max()), sink)
            weights = np.exp(scores - peak)
            values = held(caches["value_cache"][at])
            output[row, step, head] = weights @ values / (weights.sum() + np.exp(sink - peak))
    # A score is off by at most about epsilon times the sum of its terms' sizes; a weight by as
    # much relatively; values are about 4 at most.
    tolerance = 4 * EPSILON * (1 + worst)
    flat = output.reshape(len(case.start), case.seq, -1)
    return Expected(flat, caches["key_cache"], caches["value_cache"], tolerance)


def check(case: Case, results: Sequence[NDArray[Any]]) -> None:
    want = expected(case)
    np.testing.assert_allclose(results[0], want.output, rtol=0, atol=want.tolerance)
    for row, length in enumerate(case.length):
        assert not results[0][row, length:].any(), "a padded query must give zeros"
    for name, stored in (("key_cache_out", results[1]), ("value_cache_out", results[2])):
        # Bit for bit, what was not written included.
        assert stored.tobytes() == getattr(want, name).tobytes(), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case: Case) -> None:
    arrays = case.arrays()
    results = reference(*map(torch.from_numpy, arrays.values()), **case.attributes)
    check(case, [result.numpy() for result in results])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_body(case: Case, single_op: Op) -> None:
    op = single_op("CachedAttention", case.arrays(), case.attributes)
    check(case, op.run(None, threads=2))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case: Case, isa: str, single_op: Op, library: Library) -> None:
    op = single_op("CachedAttention", case.arrays(), case.attributes)
    check(case, op.run(library, isa, threads=2))


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_body_in_place(case: Case, single_op: Op) -> None:
    """A cache bound as input and output stays where it is, and nothing else in it changes."""
    op = single_op("CachedAttention", case.arrays(), case.attributes)
    check(case, op.run(None, threads=2, in_place=True))


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_kernel_in_place(case: Case, isa: str, single_op: Op, library: Library) -> None:
    op = single_op("CachedAttention", case.arrays(), case.attributes)
    check(case, op.run(library, isa, threads=2, in_place=True))


def test_precision_of_long_contexts(single_op: Op, library: Library) -> None:
    case = Case((4, 2), (64, 64), 1, (8191,), (1,))
    op = single_op("CachedAttention", case.arrays(), case.attributes)
    error = op.run(library, threads=2)[0] - expected(case).output
    assert np.abs(error).max() <= 2e-6 * np.abs(expected(case).output).max()
