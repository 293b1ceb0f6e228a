"""Reference, body and kernel of LatentAttention against float64, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from edgewright.custom_ops import OPS
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.latent_attention import reference as torch_reference
from edgewright.custom_ops.packed_weights import (
    WIDTHS,
    QuantizedMatrix,
    QuantizedRows,
    pack,
    to_bfloat16,
)
from tests.custom_ops.cache_values import cached, held, unseen
from tests.custom_ops.packed_cases import random_rows

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
EPSILON = float(np.finfo(np.float32).eps)
Arrays = dict[str, NDArray[Any]]
Op = Callable[..., Any]
WEIGHTS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class Sizes:
    heads: int
    rank: int
    rope: int
    nope: int
    value: int


@dataclass(frozen=True)
class Case:
    sizes: Sizes
    seq: int
    start: tuple[int, ...]
    length: tuple[int, ...]
    page: int = 0  # 0: one page a row, as long as the capacity
    window: int = 0
    dtype: str = "float32"  # of the cache
    weight: str = "float32"
    bits: tuple[int, ...] = ()  # of the packed weight's segments, where it is one

    @property
    def attributes(self) -> dict[str, int | float]:
        scale = (self.sizes.nope + self.sizes.rope) ** -0.5
        return {"num_heads": self.sizes.heads, "scale": scale, "window": self.window}

    def arrays(self, seed: int = 0) -> Arrays:
        """Whatever may not be looked at is NaN, or a table entry far out of range."""
        rng = np.random.default_rng(seed)
        batch, sizes = len(self.start), self.sizes
        most = max(s + n for s, n in zip(self.start, self.length, strict=True))
        page = self.page or max(most, 1) + 5
        pages = -(-(most + 3) // page)
        table = np.arange(batch * pages) if not self.page else rng.permutation(batch * pages + 2)
        table = table[: batch * pages].reshape(batch, pages).astype(np.int64)
        width = sizes.rank + sizes.rope
        pool = np.full((batch * pages + 2 * bool(self.page), page, width), unseen(self.dtype))
        pool = pool.astype(self.dtype)
        for row, start in enumerate(self.start):
            at = np.arange(start)
            places = table[row, at // page], at % page
            pool[places] = self.stored(_normal(rng, (start, width)))
        arrays: Arrays = {"table": table, "cache": pool}
        for name, width in (
            ("query", sizes.heads * (sizes.nope + sizes.rope)),
            ("latent", sizes.rank),
            ("key_rope", sizes.rope),
        ):
            arrays[name] = _normal(rng, (batch, self.seq, width))
            for row, count in enumerate(self.length):
                arrays[name][row, count:] = np.nan
        for row, count in enumerate(self.length):
            table[row, max(-(-(self.start[row] + count) // page), 1) :] = 10**12
        if self.bits:
            arrays["up"] = pack([self.quantised()])
        else:
            up = _normal(rng, (sizes.heads * (sizes.nope + sizes.value), sizes.rank))
            arrays["up"] = (up * sizes.rank**-0.5).astype(WEIGHTS[self.weight])
        arrays["start"] = np.array(self.start, np.int64)
        arrays["length"] = np.array(self.length, np.int64)
        return {tensor.name: arrays[tensor.name] for tensor in OPS["LatentAttention"].inputs}

    def quantised(self) -> QuantizedMatrix:
        """Segments that end anywhere, of values of about the size that other weights have."""
        rng, sizes = np.random.default_rng(7), self.sizes
        rows = sizes.heads * (sizes.nope + sizes.value)
        ends = [rows * i // len(self.bits) for i in range(len(self.bits) + 1)]

        def segment(bits: int, count: int) -> QuantizedRows:
            drawn = random_rows(rng, count, sizes.rank, bits, 64, outliers=0.02)
            scale = rng.uniform(0.5, 1.5, count) * sizes.rank**-0.5 / 40 / (1 << bits)
            return replace(drawn, row_scale=to_bfloat16(scale))

        counts = np.diff(ends)
        pairs = zip(self.bits, counts, strict=True)
        return QuantizedMatrix(tuple(segment(bits, int(count)) for bits, count in pairs))

    def up(self) -> NDArray[np.float64]:
        """[H, Dn+Dv, R]"""
        up = self.quantised().dequantised() if self.bits else self.arrays()["up"]
        return up.astype(np.float64).reshape(self.sizes.heads, -1, self.sizes.rank)

    def stored(self, tokens: NDArray[Any]) -> NDArray[Any]:
        """[..., R+Dr] as the cache keeps it: a latent and a rotated key are a row each."""
        parts = tokens[..., : self.sizes.rank], tokens[..., self.sizes.rank :]
        return np.concatenate([cached(part, self.dtype) for part in parts], -1)

    def seen(self, cache: NDArray[Any]) -> NDArray[np.float64]:
        parts = cache[..., : self.sizes.rank], cache[..., self.sizes.rank :]
        return np.concatenate([held(np.ascontiguousarray(part)) for part in parts], -1)

    def tensors(self) -> list[torch.Tensor]:
        """As `arrays`, for torch, which takes no bfloat16 from numpy."""
        arrays = self.arrays()
        if self.weight == "bfloat16":
            wide = torch.from_numpy(arrays.pop("up").astype(np.float32))
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            tensors["up"] = wide.to(torch.bfloat16)
        else:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return [tensors[tensor.name] for tensor in OPS["LatentAttention"].inputs]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, np.float32)


SIZES = (
    Sizes(heads=1, rank=7, rope=2, nope=5, value=3),
    Sizes(heads=3, rank=33, rope=6, nope=16, value=16),
    Sizes(heads=16, rank=64, rope=16, nope=24, value=40),
    Sizes(heads=5, rank=48, rope=10, nope=9, value=17),
)
STEPS = (  # seq, start, length
    (1, (0,), (1,)),
    (1, (5, 70, 0), (1, 1, 0)),
    (2, (129, 0), (1, 2)),
    (17, (3, 40), (17, 0)),
    (33, (0, 14, 100), (33, 20, 1)),
    (130, (0, 61), (130, 77)),
)
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"page": 16, "weight": "bfloat16"},
    {"page": 16, "window": 9, "dtype": "float16"},
    {"window": 25, "weight": "float16"},
    {"page": 5, "dtype": "float16", "weight": "bfloat16"},
)
# Every pair of settings meets: sizes turn at another rate against the rest.
CASES = [
    Case(SIZES[(i + i // 4) % 4], *steps, **variant)
    for i, (steps, variant) in enumerate(itertools.product(STEPS, VARIANTS))
]


CASES += [
    Case(SIZES[2 + i % 2], *steps, dtype="int8", page=16 * (i % 2), window=29 * (i % 3 == 2))
    for i, steps in enumerate(STEPS)
]

# Contexts long enough for the kernel to split their keys among threads, or to expand them in
# several chunks; blocks of rows that end within a step; weights of many columns.
CASES += [
    Case(SIZES[2], 1, (1500,), (1,), page=16, weight="bfloat16"),
    Case(SIZES[2], 1, (1500, 0, 700), (1, 1, 0), dtype="float16"),
    Case(SIZES[3], 1, (1300, 900), (1, 1), dtype="int8", page=7),
    Case(SIZES[2], 6, (1100,), (6,), page=16, window=1000),
    Case(SIZES[2], 130, (600, 11), (130, 130), page=16, weight="float16"),
    Case(SIZES[3], 150, (500, 0), (150, 99), window=260, dtype="int8", weight="bfloat16"),
    Case(Sizes(heads=2, rank=40, rope=8, nope=270, value=300), 40, (5, 30), (40, 9)),
    Case(Sizes(heads=1, rank=530, rope=8, nope=12, value=9), 20, (9,), (20,), dtype="float16"),
]

CASES += [  # packed weights: every width, alone and beside another, in either form
    Case(SIZES[(i + j) % 4], *steps, page=16 * (i % 2), dtype=dtype, bits=(*others, bits))
    for i, (bits, others) in enumerate(
        zip(WIDTHS, ((), (8,), (2, 3), (), (4, 4), (6,)), strict=True)
    )
    for j, (steps, dtype) in enumerate(
        (
            ((1, (5, 70, 0), (1, 1, 0)), "float16"),
            ((33, (0, 14, 100), (33, 20, 1)), "float32"),
            ((130, (0, 61), (130, 77)), "int8"),
        )
    )
    if dtype != "int8" or SIZES[(i + j) % 4].rope >= 8
]
CASES += [
    Case(SIZES[2], 1, (1500, 0, 700), (1, 1, 0), dtype="float16", bits=(4,)),
    Case(SIZES[3], 150, (500, 0), (150, 99), window=260, bits=(5, 3)),
    Case(Sizes(heads=2, rank=40, rope=8, nope=270, value=300), 40, (5, 30), (40, 9), bits=(6, 2)),
    Case(Sizes(heads=1, rank=530, rope=8, nope=12, value=9), 20, (9,), (20,), bits=(3,)),
]


def _id(case: Case) -> str:
    sizes = ".".join(map(str, astuple(case.sizes)))
    weight = f"bits{case.bits}" if case.bits else case.weight
    rest = (case.seq, case.start, case.length, case.page, case.window, case.dtype, weight)
    return f"{sizes} {' '.join(str(value).replace(' ', '') for value in rest)}"


@dataclass(frozen=True)
class Expected:
    output: NDArray[np.float64]
    cache_out: NDArray[Any]
    tolerance: float


@cache
def expected(case: Case) -> Expected:
    """Token by token and head by head in float64."""
    arrays, sizes = case.arrays(), case.sizes
    rank, nope, scale = sizes.rank, sizes.nope, case.attributes["scale"]
    pool = arrays["cache"].copy()
    page = pool.shape[1]
    ups = case.up()
    output = np.zeros((len(case.start), case.seq, sizes.heads, sizes.value))
    worst = 0.0
    for row, (start, length) in enumerate(zip(case.start, case.length, strict=True)):
        position = np.arange(start + length)
        at = arrays["table"][row, position // page], position % page
        new = np.concatenate((arrays["latent"][row], arrays["key_rope"][row]), -1)[:length]
        pool[at[0][start:], at[1][start:]] = case.stored(new)
        tokens = case.seen(pool[at])
        queries = arrays["query"][row].reshape(case.seq, sizes.heads, -1).astype(np.float64)
        for head, up in enumerate(ups):
            keys = np.concatenate((tokens[:, :rank] @ up[:nope].T, tokens[:, rank:]), -1)
            values = tokens[:, :rank] @ up[nope:].T
            sums = np.abs(tokens[:, :rank]) @ np.abs(up[:nope].T), np.abs(tokens[:, rank:])
            terms = np.concatenate(sums, -1)
            for step in range(length):
                last = start + step
                seen = slice(max(0, last - case.window + 1) if case.window else 0, last + 1)
                query = queries[step, head]
                scores = keys[seen] @ query * scale
                worst = max(worst, float((terms[seen] @ np.abs(query)).max() * scale))
                weights = np.exp(scores - scores.max())
                output[row, step, head] = weights @ values[seen] / weights.sum()
    # A score is off by at most about epsilon times the sum of its terms' sizes; a weight by as
    # much relatively; values are about 4 at most.
    tolerance = 4 * EPSILON * (1 + worst)
    return Expected(output.reshape(len(case.start), case.seq, -1), pool, tolerance)


def check(case: Case, results: Sequence[NDArray[Any]]) -> None:
    want = expected(case)
    np.testing.assert_allclose(results[0], want.output, rtol=0, atol=want.tolerance)
    for row, length in enumerate(case.length):
        assert not results[0][row, length:].any(), "a padded query must give zeros"
    # Bit for bit, what was not written included.
    assert results[1].tobytes() == want.cache_out.tobytes()


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_reference(case: Case) -> None:
    check(case, [result.numpy() for result in reference(*case.tensors(), **case.attributes)])


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_body(case: Case, single_op: Op) -> None:
    op = single_op("LatentAttention", case.arrays(), case.attributes, stored=("up",))
    check(case, op.run(None, threads=2))


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_kernel(case: Case, isa: str, single_op: Op, library: Library) -> None:
    op = single_op("LatentAttention", case.arrays(), case.attributes, stored=("up",))
    check(case, op.run(library, isa, threads=2))


@pytest.mark.parametrize("case", CASES[::6], ids=_id)
def test_kernel_takes_weights_from_any_address(
    case: Case, isa: str, tmp_path: Path, single_op: Op, library: Library
) -> None:
    op = single_op(
        "LatentAttention",
        case.arrays(),
        case.attributes,
        stored=("up",),
        folder=tmp_path,
        misaligned=2,
    )
    check(case, op.run(library, isa, threads=1))


@pytest.mark.parametrize("side", ["body", "kernel"])
@pytest.mark.parametrize(
    "case", [replace(c, weight="float16") for c in CASES[::7] if not c.bits], ids=_id
)
def test_in_place(case: Case, side: str, single_op: Op, library: Library) -> None:
    """A cache bound as input and output stays where it is, and nothing else in it changes."""
    arrays = case.arrays()
    op = single_op("LatentAttention", arrays, case.attributes)
    session = op.session(library if side == "kernel" else None, threads=2)
    values = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    binding.bind_ortvalue_output("cache_out", values["cache"])
    session.run_with_iobinding(binding)
    outputs = binding.get_outputs()
    assert outputs[1].data_ptr() == values["cache"].data_ptr()
    check(case, [output.numpy() for output in outputs])


def test_precision_of_long_contexts(single_op: Op, library: Library) -> None:
    case = Case(Sizes(heads=4, rank=512, rope=64, nope=128, value=128), 1, (4095,), (1,))
    op = single_op("LatentAttention", case.arrays(), case.attributes)
    error = op.run(library, threads=2)[0] - expected(case).output
    assert np.abs(error).max() <= 4e-6 * np.abs(expected(case).output).max()
