"""Grouped-query attention: [batch, seq, hidden] → the same, appending to a cache it is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewright.artifacts.states import Dim, StateSpec
from edgewright.model.call import Call
from edgewright.model.config import AttentionSpec, NormSpec
from edgewright.model.linear import Linear
from edgewright.model.normalisation import Norm
from edgewright.model.ops import cached_attention
from edgewright.model.rope import rotate


class Attention(nn.Module):
    no_sinks: Tensor
    state_count = 2

    def __init__(self, hidden_size: int, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.query = Linear(hidden_size, width, spec.qkv_bias)
        self.key = Linear(hidden_size, kv_width, spec.qkv_bias)
        self.value = Linear(hidden_size, kv_width, spec.qkv_bias)
        self.output = Linear(width, hidden_size, spec.output_bias)
        if spec.qk_norm is not None:
            norm = NormSpec("rms", spec.qk_norm_eps)
            whole = spec.qk_norm == "full"
            self.query_norm = Norm(width if whole else spec.head_dim, norm)
            self.key_norm = Norm(kv_width if whole else spec.head_dim, norm)
        if spec.sinks:
            self.sinks = nn.Parameter(torch.empty(spec.heads))
        else:
            none = torch.full((1,), float("-inf"), device="cpu")
            self.register_buffer("no_sinks", none, persistent=False)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        shape: tuple[Dim, ...] = ("batch", self.spec.kv_heads, "capacity", self.spec.head_dim)
        return tuple(
            StateSpec(f"{prefix}.{name}", shape, self.spec.cache_dtype, "append")
            for name in ("key", "value")
        )

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        spec = self.spec
        query = self._heads(self.query(x), spec.heads, "query_norm", call)
        key = self._heads(self.key(x), spec.kv_heads, "key_norm", call)
        mixed, key_cache, value_cache = cached_attention(
            query,
            key,
            self.value(x),
            states[0],
            states[1],
            call.table,
            call.start,
            call.length,
            self.sinks if spec.sinks else self.no_sinks,
            num_heads=spec.heads,
            scale=spec.scale,
            window=spec.window,
            softcap=spec.softcap,
        )
        return self.output(mixed), [key_cache, value_cache]

    def _heads(self, x: Tensor, heads: int, norm: str, call: Call) -> Tensor:
        """Normalise and rotate a projection [batch, seq, heads * head_dim]."""
        spec = self.spec
        if spec.qk_norm == "full":
            x = getattr(self, norm)(x)
        if spec.qk_norm == "head":
            by_head = x.reshape(*x.shape[:2], heads, spec.head_dim)
            x = getattr(self, norm)(by_head).flatten(-2)
        if spec.rope is not None:
            cos, sin = call.rotations[spec.rope]
            x = rotate(x, cos, sin, heads, spec.rope.interleaved)
        return x
