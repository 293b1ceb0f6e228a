"""LatentAttention against attention that others wrote, its gradients, and under torch.export."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from edgewright.custom_ops import torch_ops
from edgewright.custom_ops.latent_attention import reference as torch_reference

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
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
