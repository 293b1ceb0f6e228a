"""LatentAttention against attention that others wrote, its gradients, under torch.export, and given
bad inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgewright.custom_ops import torch_ops
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.latent_attention import reference as torch_reference
from edgewright.custom_ops.packed_weights import pack
from tests.custom_ops.packed_cases import random_matrix

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
Op = Callable[..., Any]
BATCH, SEQ, HEADS, RANK, ROPE, NOPE, VALUE = 2, 37, 3, 24, 6, 10, 14


def _tensors(batch: int = BATCH, seq: int = SEQ, capacity: int = SEQ) -> tuple[Tensor, ...]:
    """A whole prompt into an empty contiguous cache."""
    generator = torch.Generator().manual_seed(0)
    widths = (HEADS * (NOPE + ROPE), RANK, ROPE)
    new = [torch.randn(batch, seq, width, generator=generator) for width in widths]
    up = torch.randn(HEADS * (NOPE + VALUE), RANK, generator=generator) * RANK**-0.5
    cache = torch.zeros(batch, capacity, RANK + ROPE)
    table = torch.arange(batch)[:, None]
    return (*new, up, cache, table, torch.zeros(batch).long(), torch.full((batch,), seq))


def test_matches_scaled_dot_product_attention() -> None:
    query, latent, key_rope, up, *_ = tensors = _tensors()
    ours = reference(*tensors, num_heads=HEADS, scale=0.3)[0]
    expanded = (latent @ up.T).view(BATCH, SEQ, HEADS, NOPE + VALUE).transpose(1, 2)
    shared = key_rope[:, None].expand(-1, HEADS, -1, -1)
    theirs = scaled_dot_product_attention(
        query.view(BATCH, SEQ, HEADS, -1).transpose(1, 2),
        torch.cat((expanded[..., :NOPE], shared), -1),
        expanded[..., NOPE:],
        is_causal=True,
        scale=0.3,
    )
    torch.testing.assert_close(ours, theirs.transpose(1, 2).flatten(2), rtol=1e-5, atol=3e-6)


def test_gradients_flow_through_new_tokens_weight_and_cache() -> None:
    query, latent, key_rope, up, *_ = (x.double() for x in _tensors(seq=4))
    cache = torch.randn(BATCH, 7, RANK + ROPE).double()
    # The second row has a padded query that sees nothing inside its window.
    table, start, length = torch.arange(BATCH)[:, None], torch.tensor([3, 0]), torch.tensor([4, 1])

    def attend(*x: Tensor) -> Tensor:
        options = {"num_heads": HEADS, "scale": 0.4, "window": 2}
        return reference(*x, table, start, length, **options)[0]

    leaves = tuple(x.requires_grad_() for x in (query, latent, key_rope, up, cache))
    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


class _Attend(torch.nn.Module):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        result = torch_ops.latent_attention(*tensors, num_heads=HEADS, scale=0.3, window=6)
        assert isinstance(result, tuple)
        return result


def test_exports_with_dynamic_shapes() -> None:
    batch, seq, capacity = (torch.export.Dim(name) for name in ("batch", "seq", "capacity"))
    new, row = {0: batch, 1: seq}, {0: batch}
    shapes = ((new, new, new, {}, {0: batch, 1: capacity}, row, row, row),)
    exported = torch.export.export(_Attend(), _tensors(), dynamic_shapes=shapes, strict=False)
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "edgewright.latent_attention.default" in targets
    other = _tensors(3, 5, 9)
    for got, want in zip(exported.module()(*other), _Attend()(*other), strict=True):
        torch.testing.assert_close(got, want)


def _arrays() -> dict[str, NDArray[Any]]:
    """Two rows of three steps, in pages of four: table and positions are where lies hide."""
    rng = np.random.default_rng(0)
    return {
        "query": rng.standard_normal((2, 3, HEADS * (NOPE + ROPE)), np.float32),
        "latent": rng.standard_normal((2, 3, RANK), np.float32),
        "key_rope": rng.standard_normal((2, 3, ROPE), np.float32),
        "up": rng.standard_normal((HEADS * (NOPE + VALUE), RANK), np.float32) / 5,
        "cache": np.zeros((5, 4, RANK + ROPE), np.float32),
        "table": np.array([[0, 1], [2, 3]]),
        "start": np.array([5, 1]),
        "length": np.array([3, 2]),
    }


def _packed(rows: int, columns: int, stack: int = 1, **of_columns: bool) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return pack([random_matrix(rng, [(rows, 4)], columns, **of_columns) for _ in range(stack)])


WITH_SCALES = _packed(72, RANK, column_scale=True)
WITH_AN_ORDER = _packed(72, RANK, column_order=True)


ATTRIBUTES = {"num_heads": HEADS, "scale": 0.3, "window": 0}
NONE = np.zeros(2, np.int64)
LARGEST = np.iinfo(np.int64).max
FLOAT = np.float32
BAD_INPUTS: dict[str, tuple[str, NDArray[Any], str]] = {
    "table past the pool": ("table", np.array([[0, 5], [2, 3]]), "table entry 5"),
    "negative table entry": ("table", np.array([[-1, 1], [2, 3]]), "table entry -1"),
    "more tokens than pages": ("start", np.array([6, 1]), "has room for 8"),
    "start far beyond": ("start", np.array([LARGEST, 1]), "has room for 8"),
    "negative start": ("start", np.array([-1, 1]), "starts at -1"),
    "negative length": ("length", np.array([3, -1]), "length of row 1 is -1"),
    "length beyond the call": ("length", np.array([4, 2]), "length of row 0 is 4"),
    "lengths of other rows": ("length", np.array([3]), "length is 1, not 2"),
    "starts of other rows": ("start", np.array([3]), "start is 1, not 2"),
    "table of other rows": ("table", np.array([[0, 1]]), "table is 1, not 2"),
    "flat table": ("table", np.array([0, 1]), "table has 1 dimensions, not 2"),
    "no table": ("table", np.zeros((2, 0), np.int64), "has room for 0"),
    "query of other heads": ("query", np.zeros((2, 3, 47), FLOAT), "not a multiple of num_heads"),
    "query of rope alone": ("query", np.zeros((2, 3, HEADS * ROPE), FLOAT), "nothing is left"),
    "flat query": ("query", np.zeros((6, 48), FLOAT), "query has 2 dimensions, not 3"),
    "other batch of latents": ("latent", np.zeros((1, 3, RANK), FLOAT), "latent is 1, not 2"),
    "other steps of keys": ("key_rope", np.zeros((2, 2, ROPE), FLOAT), "key_rope is 2, not 3"),
    "no rotated key": ("key_rope", np.zeros((2, 3, 0), FLOAT), "is empty"),
    "no latent": ("latent", np.zeros((2, 3, 0), FLOAT), "is empty"),
    "weight of another rank": ("up", np.zeros((72, 23), FLOAT), "dimension 1 of up is 23, not 24"),
    "weight of other heads": ("up", np.zeros((71, RANK), FLOAT), "not a multiple of num_heads"),
    "weight without values": ("up", np.zeros((HEADS * NOPE, RANK), FLOAT), "nothing is left"),
    "packed weight of another rank": ("up", _packed(72, 23), "23 columns; one of 24"),
    "packed weight of other heads": ("up", _packed(71, RANK), "71, not a multiple of num_heads"),
    "two packed weights": ("up", _packed(72, RANK, 2), "has 2 matrices of 24 columns; one"),
    "packed weight with column scales": ("up", WITH_SCALES, "with scales or an order; one of 24"),
    "packed weight with a column order": ("up", WITH_AN_ORDER, "without scales or an order"),
    "no packed weight": ("up", np.zeros(640, np.uint8), "does not begin with EWPM"),
    "cache of another width": ("cache", np.zeros((5, 4, 29), FLOAT), "of cache is 29, not 30"),
    "no slots": ("cache", np.zeros((5, 0, 30), FLOAT), "is empty"),
    "cache by heads": ("cache", np.zeros((5, 1, 4, 30), FLOAT), "cache has 4 dimensions, not 3"),
    "int8 for six values": ("cache", np.zeros((5, 4, 30), np.int8), "needs 8 or more of each"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_kernel_refuses(name: str, single_op: Op, library: Library) -> None:
    which, array, message = BAD_INPUTS[name]
    op = single_op("LatentAttention", {**_arrays(), which: array}, ATTRIBUTES)
    with pytest.raises(Exception, match=message) as error:
        op.run(library, threads=2)
    assert "\n" not in str(error.value).strip()


@pytest.mark.parametrize(("attribute", "value"), [("num_heads", 0), ("window", -1)])
def test_kernel_refuses_attributes(
    attribute: str, value: int, single_op: Op, library: Library
) -> None:
    op = single_op("LatentAttention", _arrays(), {**ATTRIBUTES, attribute: value})
    with pytest.raises(Exception, match=attribute):
        op.run(library)


@pytest.mark.parametrize(
    "changes",
    [
        {"table": np.array([[0, 1], [0, 3]]), "start": np.array([4, 4])},
        {"table": np.array([[2, 3], [2, 2]]), "start": NONE, "length": np.array([3, 0])},
        {"length": NONE},
    ],
    ids=["a page that nobody writes is shared", "an idle row's table is not used", "nothing to do"],
)
def test_rows_write_their_own_tokens_alone(
    changes: dict[str, NDArray[Any]], single_op: Op, library: Library
) -> None:
    arrays = _arrays() | changes
    arrays["cache"] = np.random.default_rng(1).standard_normal((5, 4, RANK + ROPE), np.float32)
    op = single_op("LatentAttention", arrays, ATTRIBUTES)
    want = reference(*map(torch.from_numpy, arrays.values()), **ATTRIBUTES)
    for side in (library, None):
        for got, expected in zip(op.run(side, threads=2), want, strict=True):
            np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=["no rows", "no steps"])
def test_kernel_takes_empty_calls(shape: tuple[int, int], single_op: Op, library: Library) -> None:
    arrays = _arrays()
    for name in ("query", "latent", "key_rope"):
        arrays[name] = np.zeros((*shape, arrays[name].shape[2]), np.float32)
    for name in ("table", "start", "length"):
        arrays[name] = arrays[name][: shape[0]] * 0
    output, cache = single_op("LatentAttention", arrays, ATTRIBUTES).run(library)
    assert output.shape == (*shape, HEADS * VALUE)
    np.testing.assert_array_equal(cache, arrays["cache"])
