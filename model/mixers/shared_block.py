"""A transformer block that several layers share, each with low-rank adapters of its own, before the
layer's own mixer: [batch, seq, hidden] → the same. The block sees the embedded tokens too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgewright.artifacts.states import Dim, StateSpec
from edgewright.model.activation import ACTIVATIONS
from edgewright.model.call import Call
from edgewright.model.config import Activation, CacheDtype, MixerSpec, NormSpec
from edgewright.model.linear import Linear
from edgewright.model.mixer import Mixer, check_cache_rows
from edgewright.model.normalisation import Norm
from edgewright.model.ops import cached_attention
from edgewright.model.rope import RopeSpec, rotate


@dataclass(frozen=True)
class SharedBlockSpec:
    """Its norms are its own, so the layer around it has none."""

    own: MixerSpec  # what the block's result goes into
    home: int  # the first layer that runs this block, where its weights are
    turn: int  # how many layers before this one run a block
    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    intermediate: int
    activation: Activation
    bias: bool  # of the MLP
    norm: NormSpec
    adapter_rank: int
    attention_adapters: bool
    cache_dtype: CacheDtype = "float32"

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return self.own.ropes if self.rope is None else (self.rope, *self.own.ropes)

    def with_cache(self, dtype: CacheDtype) -> SharedBlockSpec:
        return replace(self, own=self.own.with_cache(dtype), cache_dtype=dtype)

    def build(self, hidden_size: int) -> SharedBlock:
        return SharedBlock(hidden_size, self)


class Block(nn.Module):
    """What is shared: attention over [x | embedding], then a gated MLP, without residuals."""

    def __init__(self, hidden_size: int, spec: SharedBlockSpec) -> None:
        super().__init__()
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.norm = Norm(2 * hidden_size, spec.norm)
        self.query = Linear(2 * hidden_size, width)
        self.key = Linear(2 * hidden_size, kv_width)
        self.value = Linear(2 * hidden_size, kv_width)
        self.output = Linear(width, hidden_size)
        self.feed_forward_norm = Norm(hidden_size, spec.norm)
        self.gate_up = Linear(hidden_size, 2 * spec.intermediate, spec.bias)
        self.down = Linear(spec.intermediate, hidden_size, spec.bias)


class Adapter(nn.Module):
    def __init__(self, size_in: int, rank: int, size_out: int) -> None:
        super().__init__()
        self.narrow = Linear(size_in, rank)
        self.widen = Linear(rank, size_out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.widen(self.narrow(x))
        return y


class SharedBlock(Mixer):
    no_sinks: Tensor

    def __init__(self, hidden_size: int, spec: SharedBlockSpec) -> None:
        super().__init__()
        check_cache_rows(spec.cache_dtype, attention_head_dim=spec.head_dim)
        self.spec = spec
        self.activate = ACTIVATIONS[spec.activation]
        self.block = Block(hidden_size, spec)
        width, kv_width = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        if spec.attention_adapters:
            self.query_adapter = Adapter(2 * hidden_size, spec.adapter_rank, width)
            self.key_adapter = Adapter(2 * hidden_size, spec.adapter_rank, kv_width)
            self.value_adapter = Adapter(2 * hidden_size, spec.adapter_rank, kv_width)
        self.gate_up_adapter = Adapter(hidden_size, spec.adapter_rank, 2 * spec.intermediate)
        self.output = Linear(hidden_size, hidden_size)
        self.norm = Norm(hidden_size, spec.norm)
        self.own = spec.own.build(hidden_size)
        none = torch.full((1,), float("-inf"), device="cpu")
        self.register_buffer("no_sinks", none, persistent=False)

    def share(self, earlier: Sequence[Mixer]) -> None:
        for other in earlier:
            if isinstance(other, SharedBlock) and other.spec.home == self.spec.home:
                self.block = other.block
                return

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        shape: tuple[Dim, ...] = ("batch", self.spec.kv_heads, "capacity", self.spec.head_dim)
        caches = tuple(
            StateSpec(f"{prefix}.{name}", shape, self.spec.cache_dtype, "append")
            for name in ("key", "value")
        )
        return caches + self.own.states(prefix)

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        mixed, caches = self._attend(x, call, states[:2])
        h = self.block.feed_forward_norm(mixed)
        gate, up = (self.block.gate_up(h) + self.gate_up_adapter(h)).chunk(2, dim=-1)
        h = self.output(self.block.down(self.activate(gate) * up))
        y, after = self.own(self.norm(x + h), call, states[2:])
        return y, caches + after

    def _attend(self, x: Tensor, call: Call, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        spec, block = self.spec, self.block
        h = block.norm(torch.cat((x, call.embedding), dim=-1))
        query, key, value = block.query(h), block.key(h), block.value(h)
        if spec.attention_adapters:
            query = query + self.query_adapter(h)
            key = key + self.key_adapter(h)
            value = value + self.value_adapter(h)
        if spec.rope is not None:
            cos, sin = call.rotations[spec.rope]
            query = rotate(query, cos, sin, spec.heads, spec.rope.interleaved)
            key = rotate(key, cos, sin, spec.kv_heads, spec.rope.interleaved)
        mixed, *after = cached_attention(
            query,
            key,
            value,
            *caches,
            call.table,
            call.start,
            call.length,
            self.no_sinks,
            num_heads=spec.heads,
            # As if a head were half as wide: the other half of what it sees is the embedding.
            scale=(spec.head_dim / 2) ** -0.5,
            window=0,
            softcap=0.0,
        )
        return block.output(mixed), after
