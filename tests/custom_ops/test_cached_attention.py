"""Reference, body and kernel of CachedAttention against float64 and against transformers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from edgewright.custom_ops import DOMAIN, OPS, onnx_functions
from edgewright.custom_ops.cached_attention.reference import reference

EPSILON = float(np.finfo(np.float32).eps)
Arrays = dict[str, NDArray[np.generic]]


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
            pool = np.full((batch * pages + 2 * bool(self.page), kv_heads, page, dim), np.nan)
            for row, start in enumerate(self.start):
                for position in range(start):
                    block = table[row, position // page]
                    pool[block, :, position % page] = _normal(rng, (kv_heads, dim))
            arrays[f"{name}_cache"] = pool.astype(self.dtype)
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


ISAS = ("sse2", "avx2", "avx512")
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
VARIANTS = (
    {},
    {"page": 16},
    {"page": 16, "window": 9, "sinks": True},
    {"window": 25, "softcap": 5.0},
    {"page": 16, "dtype": "float16", "sinks": True},
    {"dtype": "float16", "softcap": 3.0, "window": 64},
)
# Every pair of settings meets: heads and dims turn at different rates against the rest.
CASES = [
    Case(HEADS[i % 4], DIMS[(i + i // 4) % 4], *steps, **variant)  # type: ignore[arg-type]
    for i, (steps, variant) in enumerate(itertools.product(STEPS, VARIANTS))
]


@dataclass(frozen=True)
class Expected:
    output: NDArray[np.float64]
    key_cache_out: NDArray[np.generic]
    value_cache_out: NDArray[np.generic]
    tolerance: float


@cache
def expected(case: Case) -> Expected:
    """Token by token and head by head in float64."""
    arrays = case.arrays()
    (heads, kv_heads), (dim, v_dim) = case.heads, case.dims
    caches = {name: arrays[name].copy() for name in ("key_cache", "value_cache")}
    page = caches["key_cache"].shape[2]
    output = np.zeros((len(case.start), case.seq, heads, v_dim))
    worst = 0.0
    for row, (start, length) in enumerate(zip(case.start, case.length, strict=True)):
        spots = [(arrays["table"][row, p // page], p % page) for p in range(start + length)]
        for step in range(length):
            block, slot = spots[start + step]
            for name, cached in (("key", "key_cache"), ("value", "value_cache")):
                caches[cached][block, :, slot] = arrays[name][row, step].reshape(kv_heads, -1)
        for step, head in itertools.product(range(length), range(heads)):
            last = start + step
            first = max(0, last - case.window + 1) if case.window else 0
            kv = head // (heads // kv_heads)
            keys = np.array([caches["key_cache"][b, kv, s] for b, s in spots[first : last + 1]])
            values = np.array([caches["value_cache"][b, kv, s] for b, s in spots[first : last + 1]])
            query = arrays["query"][row, step].reshape(heads, dim)[head].astype(np.float64)
            scores = keys.astype(np.float64) @ query * case.attributes["scale"]
            sums = np.abs(keys.astype(np.float64)) @ np.abs(query) * case.attributes["scale"]
            worst = max(worst, float(sums.max()))
            if case.softcap:
                scores = case.softcap * np.tanh(scores / case.softcap)
            sink = float(np.broadcast_to(arrays["sinks"], heads)[head])
            peak = max(float(scores.max()), sink)
            weights = np.exp(scores - peak)
            mass = weights.sum() + np.exp(sink - peak)
            output[row, step, head] = weights @ values.astype(np.float64) / mass
    # A score is off by at most about epsilon times the sum of its terms' sizes; a weight by as
    # much relatively; values are about 4 at most.
    tolerance = 4 * EPSILON * (1 + worst)
    flat = output.reshape(len(case.start), case.seq, -1)
    return Expected(flat, caches["key_cache"], caches["value_cache"], tolerance)


def check(case: Case, results: list[NDArray[np.generic]]) -> None:
    want = expected(case)
    np.testing.assert_allclose(results[0], want.output, rtol=0, atol=want.tolerance)
    for row, length in enumerate(case.length):
        assert not results[0][row, length:].any(), "a padded query must give zeros"
    for name, cached in (("key_cache_out", results[1]), ("value_cache_out", results[2])):
        assert cached.tobytes() == getattr(want, name).tobytes(), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case: Case) -> None:
    arrays = case.arrays()
    results = reference(*map(torch.from_numpy, arrays.values()), **case.attributes)  # type: ignore[arg-type]
    check(case, [result.numpy() for result in results])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_body(case: Case, single_op: Any) -> None:
    arrays = case.arrays()
    op = single_op("CachedAttention", arrays, case.attributes)
    check(case, op.run(None, threads=2))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel(case: Case, isa: str, single_op: Any, library: Library) -> None:
    arrays = case.arrays()
    op = single_op("CachedAttention", arrays, case.attributes)
    check(case, op.run(library, isa, threads=2))
