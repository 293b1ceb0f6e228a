"""CachedAttention against attention that others wrote, under torch.export, and given bad inputs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from edgewright.custom_ops import torch_ops
from edgewright.custom_ops.cached_attention import reference as torch_reference
from edgewright.custom_ops.compiler import Library

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
BATCH, SEQ, HEADS, KV_HEADS, DIM = 2, 37, 6, 2, 24
Op = Callable[..., Any]
NO_SINK = torch.tensor([-torch.inf])


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _tensors(batch: int = BATCH, seq: int = SEQ, capacity: int = SEQ) -> tuple[Tensor, ...]:
    """A whole prompt into an empty contiguous cache."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, DIM))
    new = [torch.randn(batch, seq, n * dim, generator=generator) for n, dim in shapes]
    caches = [torch.zeros(batch, KV_HEADS, capacity, DIM) for _ in range(2)]
    table = torch.arange(batch)[:, None]
    return (*new, *caches, table, torch.zeros(batch).long(), torch.full((batch,), seq))


def _mask(window: int = 0) -> Tensor:
    distance = torch.arange(SEQ)[:, None] - torch.arange(SEQ)
    allowed = (distance >= 0) & ((distance < window) | (window == 0))
    return torch.zeros(SEQ, SEQ).masked_fill(~allowed, -torch.inf)


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-6)


def test_matches_scaled_dot_product_attention() -> None:
    query, key, value, *rest = _tensors()
    ours = reference(query, key, value, *rest, NO_SINK, num_heads=HEADS, scale=0.3)[0]
    theirs = torch.nn.functional.scaled_dot_product_attention(
        _heads(query, HEADS),
        _heads(key, KV_HEADS),
        _heads(value, KV_HEADS),
        is_causal=True,
        scale=0.3,
        enable_gqa=True,
    )
    _close(ours, theirs.transpose(1, 2).flatten(2))


def test_matches_the_soft_cap_and_window_of_gemma2() -> None:
    query, key, value, *rest = _tensors()
    options = {"num_heads": HEADS, "scale": 0.9, "window": 11, "softcap": 2.5}
    ours = reference(query, key, value, *rest, NO_SINK, **options)[0]
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, training=False)
    states = _heads(query, HEADS), _heads(key, KV_HEADS), _heads(value, KV_HEADS)
    theirs = modeling_gemma2.eager_attention_forward(
        module, *states, _mask(11), scaling=0.9, softcap=2.5
    )
    _close(ours, theirs[0].flatten(2))


def test_matches_the_sinks_of_gpt_oss() -> None:
    query, key, value, *rest = _tensors()
    sinks = torch.linspace(-3, 4, HEADS)
    ours = reference(query, key, value, *rest, sinks, num_heads=HEADS, scale=0.5, window=8)[0]
    groups = HEADS // KV_HEADS
    module: Any = SimpleNamespace(num_key_value_groups=groups, training=False, sinks=sinks)
    states = _heads(query, HEADS), _heads(key, KV_HEADS), _heads(value, KV_HEADS)
    theirs = modeling_gpt_oss.eager_attention_forward(module, *states, _mask(8), scaling=0.5)
    _close(ours, theirs[0].flatten(2))


def test_gradients_flow_through_new_tokens_caches_and_sinks() -> None:
    query, key, value, *rest = _tensors(seq=4, capacity=7)
    key_cache, value_cache = torch.randn(2, BATCH, KV_HEADS, 7, DIM).double().unbind()
    table, _, length = rest[2:]
    start = torch.tensor([3, 0])
    floats = [x.double() for x in (query, key, value)] + [key_cache, value_cache]
    floats.append(torch.randn(HEADS).double())

    def attend(*x: Tensor) -> Tensor:
        options = {"num_heads": HEADS, "scale": 0.4, "window": 5, "softcap": 3.0}
        return reference(*x[:5], table, start, length, x[5], **options)[0]

    leaves = tuple(x.requires_grad_() for x in floats)
    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


class _Attend(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        options = {"num_heads": HEADS, "scale": 0.3, "window": 6, "softcap": 0.0}
        result = torch_ops.cached_attention(*tensors, NO_SINK, **options)
        assert isinstance(result, tuple)
        return result


def test_exports_with_dynamic_shapes() -> None:
    batch, seq, capacity = (torch.export.Dim(name) for name in ("batch", "seq", "capacity"))
    new, cache = {0: batch, 1: seq}, {0: batch, 2: capacity}
    row = {0: batch}
    shapes = ((new, new, new, cache, cache, row, row, row),)
    exported = torch.export.export(_Attend(), _tensors(), dynamic_shapes=shapes, strict=False)
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "edgewright.cached_attention.default" in targets
    other = _tensors(3, 5, 9)
    for got, want in zip(exported.module()(*other), _Attend()(*other), strict=True):
        torch.testing.assert_close(got, want)


def _arrays() -> dict[str, NDArray[Any]]:
    """Two rows of three steps, in pages of four: table and positions are where lies hide."""
    rng = np.random.default_rng(0)
    pool = np.zeros((5, KV_HEADS, 4, DIM), np.float32)
    return {
        "query": rng.standard_normal((2, 3, HEADS * DIM), np.float32),
        "key": rng.standard_normal((2, 3, KV_HEADS * DIM), np.float32),
        "value": rng.standard_normal((2, 3, KV_HEADS * DIM), np.float32),
        "key_cache": pool,
        "value_cache": pool.copy(),
        "table": np.array([[0, 1], [2, 3]]),
        "start": np.array([5, 1]),
        "length": np.array([3, 2]),
        "sinks": np.array([-np.inf], np.float32),
    }


ATTRIBUTES = {"num_heads": HEADS, "scale": 0.3, "window": 0, "softcap": 0.0}
LARGEST = np.iinfo(np.int64).max
BAD_INPUTS = {
    "table past the pool": ("table", np.array([[0, 5], [2, 3]]), "table entry 5"),
    "negative table entry": ("table", np.array([[-1, 1], [2, 3]]), "table entry -1"),
    "more tokens than pages": ("start", np.array([6, 1]), "has room for 8"),
    "start far beyond": ("start", np.array([LARGEST, 1]), "has room for 8"),
    "negative start": ("start", np.array([-1, 1]), "starts at -1"),
    "negative length": ("length", np.array([3, -1]), "length of row 1 is -1"),
    "length beyond the call": ("length", np.array([4, 2]), "length of row 0 is 4"),
    "lengths of other rows": ("length", np.array([3]), "length is 1, not 2"),
    "table of other rows": ("table", np.array([[0, 1]]), "table is 1, not 2"),
    "no table": ("table", np.zeros((2, 0), np.int64), "has room for 0"),
    "narrow query": ("query", np.zeros((2, 3, 8), np.float32), "query is 8, not 144"),
    "other batch of keys": ("key", np.zeros((1, 3, 48), np.float32), "key is 1, not 2"),
    "other steps of values": ("value", np.zeros((2, 2, 48), np.float32), "value is 2, not 3"),
    "smaller value pool": ("value_cache", np.zeros((4, 2, 4, 24), np.float32), "is 4, not 5"),
    "no slots": ("key_cache", np.zeros((5, 2, 0, 24), np.float32), "empty dimension"),
    "heads that do not divide": ("key_cache", np.zeros((5, 4, 4, 24), np.float32), "multiple of"),
    "flat cache": ("key_cache", np.zeros((5, 2, 96), np.float32), "has 3 dimensions, not 4"),
    "wrong sinks": ("sinks", np.zeros(4, np.float32), "sinks is 4, not 6"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_kernel_refuses(name: str, single_op: Op, library: Library) -> None:
    which, array, message = BAD_INPUTS[name]
    op = single_op("CachedAttention", {**_arrays(), which: array}, ATTRIBUTES)
    with pytest.raises(Exception, match=message):
        op.run(library, threads=2)


def test_kernel_refuses_rows_too_short_for_a_scale(single_op: Op, library: Library) -> None:
    arrays = _arrays()
    arrays["value"] = arrays["value"][..., : KV_HEADS * 7]
    arrays["key_cache"] = np.zeros((5, KV_HEADS, 4, DIM), np.int8)
    arrays["value_cache"] = np.zeros((5, KV_HEADS, 4, 7), np.int8)
    with pytest.raises(Exception, match="rows of 24 and 7 values; at least 8 are required"):
        single_op("CachedAttention", arrays, ATTRIBUTES).run(library)


@pytest.mark.parametrize(
    ("attribute", "value"), [("num_heads", 0), ("window", -1), ("softcap", -1.0), ("num_heads", 5)]
)
def test_kernel_refuses_attributes(
    attribute: str, value: float, single_op: Op, library: Library
) -> None:
    op = single_op("CachedAttention", _arrays(), {**ATTRIBUTES, attribute: value})
    with pytest.raises(Exception, match=attribute):
        op.run(library)


def test_rows_may_share_pages_that_nobody_writes(single_op: Op, library: Library) -> None:
    arrays = _arrays()
    rng = np.random.default_rng(1)
    for name in ("key_cache", "value_cache"):
        arrays[name] = rng.standard_normal(arrays[name].shape, np.float32)
    arrays |= {"table": np.array([[0, 1], [0, 3]]), "start": np.array([4, 4])}
    op = single_op("CachedAttention", arrays, ATTRIBUTES)
    tensors = map(torch.from_numpy, arrays.values())
    want = [result.numpy() for result in reference(*tensors, **ATTRIBUTES)]
    for side in (library, None):
        for got, expected in zip(op.run(side, threads=2), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


def test_empty_rows_write_nothing_whatever_their_table_says(
    single_op: Op, library: Library
) -> None:
    """An idle row's table may name a page that another row is writing."""
    arrays = _arrays()
    arrays |= {"table": np.array([[2, 3], [2, 2]]), "start": np.array([0, 0])}
    arrays["length"] = np.array([3, 0])
    op = single_op("CachedAttention", arrays, ATTRIBUTES)
    tensors = map(torch.from_numpy, arrays.values())
    want = [result.numpy() for result in reference(*tensors, **ATTRIBUTES)]
    for side in (library, None):
        for got, expected in zip(op.run(side, threads=2), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)
