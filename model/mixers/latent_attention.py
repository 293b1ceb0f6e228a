"""Latent attention: [batch, seq, hidden] → the same. Keys and values are made of one narrow vector
a token, shared by all heads, and of one rotated key; the cache holds only those."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgewright.artifacts.states import Dim, StateSpec
from edgewright.model.call import Call
from edgewright.model.config import CacheDtype, NormSpec
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer, check_cache_rows
from edgewright.model.normalisation import Norm
from edgewright.model.ops import latent_attention
from edgewright.model.rope import RopeSpec, rotate


@dataclass(frozen=True)
class LatentAttentionSpec:
    """A query and a key of each head are `nope_dim` values followed by `rope_dim` rotated ones."""

    heads: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rank: int
    scale: float
    rope: RopeSpec | None = None
    latent_norm: NormSpec | None = None
    # Queries go through a narrow vector too, where there is a rank, which may have a norm and bias.
    query_rank: int | None = None
    query_norm: NormSpec | None = None
    query_down_bias: bool = False
    query_bias: bool = False
    latent_bias: bool = False
    output_bias: bool = False
    window: int = 0
    cache_dtype: CacheDtype = "float32"

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return () if self.rope is None else (self.rope,)

    def with_cache(self, dtype: CacheDtype) -> LatentAttentionSpec:
        check_cache_rows(dtype, kv_lora_rank=self.rank, qk_rope_head_dim=self.rope_dim)
        return replace(self, cache_dtype=dtype)

    def build(self, hidden_size: int) -> LatentAttention:
        return LatentAttention(hidden_size, self)


class LatentAttention(Mixer):
    def __init__(self, hidden_size: int, spec: LatentAttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.query_down: Linear | None = None
        query_from = hidden_size
        if spec.query_rank is not None:
            self.query_down = Linear(hidden_size, spec.query_rank, spec.query_down_bias)
            query_from = spec.query_rank
        self.query_norm = _norm(query_from, spec.query_norm)
        query_width = spec.heads * (spec.nope_dim + spec.rope_dim)
        self.query = Linear(query_from, query_width, spec.query_bias)
        # The latent, then the key that is rotated.
        self.latent = Linear(hidden_size, spec.rank + spec.rope_dim, spec.latent_bias)
        self.latent_norm = _norm(spec.rank, spec.latent_norm)
        # Of each head, first what makes its key of a latent, then what makes its value.
        self.up = nn.Parameter(
            torch.empty(spec.heads * (spec.nope_dim + spec.value_dim), spec.rank)
        )
        self.output = Linear(spec.heads * spec.value_dim, hidden_size, spec.output_bias)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        width = self.spec.rank + self.spec.rope_dim
        shape: tuple[Dim, ...] = ("batch", "capacity", width)
        return (StateSpec(f"{prefix}.latent", shape, self.spec.cache_dtype, "append"),)

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        query = self._queries(x, call)
        latent, key_rope = self._latents(x, call)
        mixed, cache = latent_attention(
            query,
            latent,
            key_rope,
            self.up,
            states[0],
            call.table,
            call.start,
            call.length,
            num_heads=self.spec.heads,
            scale=self.spec.scale,
            window=self.spec.window,
        )
        return self.output(mixed), [cache]

    def _queries(self, x: Tensor, call: Call) -> Tensor:
        """[batch, seq, heads * (nope_dim + rope_dim)], the last part of each head rotated."""
        spec = self.spec
        if self.query_down is not None:
            x = self.query_down(x)
        query: Tensor = self.query(x if self.query_norm is None else self.query_norm(x))
        if spec.rope is None:
            return query
        by_head = query.reshape(*query.shape[:2], spec.heads, -1)
        nope, rope = by_head[..., : spec.nope_dim], by_head[..., spec.nope_dim :]
        turned = self._rotate(rope.flatten(-2), spec.heads, call).reshape(rope.shape)
        return torch.cat((nope, turned), dim=-1).flatten(-2)

    def _latents(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """[batch, seq, rank] and [batch, seq, rope_dim], as the cache keeps them."""
        both = self.latent(x)
        latent, key_rope = both[..., : self.spec.rank], both[..., self.spec.rank :]
        if self.latent_norm is not None:
            latent = self.latent_norm(latent)
        return latent, self._rotate(key_rope, 1, call)

    def _rotate(self, x: Tensor, heads: int, call: Call) -> Tensor:
        if self.spec.rope is None:
            return x
        cos, sin = call.rotations[self.spec.rope]
        return rotate(x, cos, sin, heads, self.spec.rope.interleaved)


def _norm(size: int, spec: NormSpec | None) -> Norm | None:
    return None if spec is None else Norm(size, spec)
