"""Grouped-query attention: [batch, seq, hidden] → the same, appending to a cache it is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from edgewright.artifacts.states import Dim, StateSpec
from edgewright.model.call import Call
from edgewright.model.config import CacheDtype, NormSpec
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer, check_cache_rows
from edgewright.model.normalisation import Norm
from edgewright.model.ops import cached_attention
from edgewright.model.rope import RopeSpec, rotate


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention and every variant its families need."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    # "head" normalises each head, "full" the whole projection.
    qk_norm: Literal["head", "full"] | None = None
    qk_norm_eps: float = 1e-6
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    # A sigmoid of its own for every value that the heads give.
    output_gate: bool = False
    cache_dtype: CacheDtype = "float32"

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return () if self.rope is None else (self.rope,)

    def with_cache(self, dtype: CacheDtype) -> AttentionSpec:
        check_cache_rows(dtype, head_dim=self.head_dim)
        return replace(self, cache_dtype=dtype)

    def build(self, hidden_size: int) -> Attention:
        return Attention(hidden_size, self)


class Attention(Mixer):
    no_sinks: Tensor

    def __init__(self, hidden_size: int, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.query = Linear(hidden_size, width, spec.qkv_bias)
        self.key = Linear(hidden_size, kv_width, spec.qkv_bias)
        self.value = Linear(hidden_size, kv_width, spec.qkv_bias)
        self.gate = Linear(hidden_size, width, spec.qkv_bias) if spec.output_gate else None
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
        query, key = self.rotated(x, call)
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
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.output(mixed), [key_cache, value_cache]

    def rotated(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Queries and keys as attention compares them [batch, seq, heads * head_dim]."""
        query = self._heads(self.query(x), self.spec.heads, "query_norm", call)
        return query, self._heads(self.key(x), self.spec.kv_heads, "key_norm", call)

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
