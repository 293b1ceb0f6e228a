"""Attention over whole rows without a cache, with gradients: what a training step runs in place
of the decoder's own, whose weights and projections it shares."""

from __future__ import annotations

import math

import torch
from torch import Tensor, autograd
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from edgewright.artifacts.states import StateSpec
from edgewright.model.call import Call
from edgewright.model.mixers.attention import Attention
from edgewright.model.mixers.latent_attention import LatentAttention

# Queries at a time: each block looks only at the keys up to its own end, which halves the work.
_BLOCK = 128


class CausalAttention(Attention):
    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        return ()

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        spec = self.spec
        batch, seq = x.shape[:2]
        value = self.value(x)
        query, key = self.rotated(x, call)
        query = _split(
            (query * spec.scale).to(value.dtype), spec.kv_heads, spec.heads // spec.kv_heads
        )
        key, value = (_split(t.to(value.dtype), spec.kv_heads, 1)[:, 0] for t in (key, value))
        mixed: Tensor = _BlockedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        mixed = mixed.view(batch, spec.heads, seq, -1).transpose(1, 2).flatten(2)
        return self.output(mixed), []


class CausalLatentAttention(LatentAttention):
    """Keys and values are expanded: without a cache nothing is gained by their latents."""

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        return ()

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        spec = self.spec
        batch, seq = x.shape[:2]
        latent, key_rope = self._latents(x, call)
        expanded = functional.linear(latent, self.up).view(batch, seq, spec.heads, -1)
        key, value = expanded[..., : spec.nope_dim], expanded[..., spec.nope_dim :]
        turned = key_rope.to(key.dtype)[:, :, None].expand(-1, -1, spec.heads, -1)
        key = torch.cat((key, turned), dim=-1)
        query = (self._queries(x, call) * spec.scale).to(value.dtype)
        query = _split(query, spec.heads, 1)
        key, value = (_split(t.flatten(2), spec.heads, 1)[:, 0] for t in (key, value))
        mixed: Tensor = _BlockedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
        mixed = mixed.view(batch, spec.heads, seq, -1).transpose(1, 2).flatten(2)
        return self.output(mixed), []


def _split(x: Tensor, kv_heads: int, group: int) -> Tensor:
    """[batch, seq, kv_heads * group * dim] → [batch * kv_heads, group, seq, dim]"""
    x = x.reshape(*x.shape[:2], kv_heads, group, -1).permute(0, 2, 3, 1, 4)
    return x.flatten(0, 1).contiguous()


class _BlockedAttention(autograd.Function):
    """query [n, group, seq, dim], key [n, seq, dim], value [n, seq, v] → [n, group, seq, v].

    Keeping the weights in the projections' dtype and working in whole matrix products makes this
    three times as fast on a CPU as torch's fused kernel, at the cost of seq² / 2 values a head.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        n, group, seq, dim = query.shape
        wide = value.shape[-1]
        out = torch.empty(n, group, seq, wide, dtype=query.dtype)
        kept = []
        for begin in range(0, seq, _BLOCK):
            end = min(begin + _BLOCK, seq)
            rows = query[:, :, begin:end].reshape(n, -1, dim)
            scores = torch.bmm(rows, key[:, :end].transpose(1, 2)).view(n, group, -1, end)
            future = torch.full((end - begin, end), -math.inf, dtype=scores.dtype).triu_(begin + 1)
            weights = scores.add_(future).softmax(-1).view(n, -1, end)
            out[:, :, begin:end] = torch.bmm(weights, value[:, :end]).view(
                n, group, end - begin, -1
            )
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        n, group, seq, dim = query.shape
        d_query = torch.empty_like(query)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        for weights, begin in zip(kept, range(0, seq, _BLOCK), strict=True):
            end = min(begin + _BLOCK, seq)
            rows = grad[:, :, begin:end].reshape(n, -1, value.shape[-1])
            d_value[:, :end] += torch.bmm(weights.transpose(1, 2), rows)
            d_weights = torch.bmm(rows, value[:, :end].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_query[:, :, begin:end] = torch.bmm(d_scores, key[:, :end]).view(n, group, -1, dim)
            asked = query[:, :, begin:end].reshape(n, -1, dim)
            d_key[:, :end] += torch.bmm(d_scores.transpose(1, 2), asked)
        return d_query, d_key, d_value
