"""The custom ops as the decoder calls them, typed: tensors and attributes in, tensors out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, cast

from torch import Tensor

from edgewright.custom_ops import torch_ops


class Watcher(Protocol):
    """Is shown what each weight is about to be multiplied with."""

    def product(self, x: Tensor, weight: Tensor) -> None: ...

    def experts(
        self, tensors: tuple[Tensor, ...], activation: str, alpha: float, limit: float
    ) -> None: ...


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """The decoder's products are shown to `watcher` for as long as this lasts."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def block_matmul(x: Tensor, weight: Tensor) -> Tensor:
    if watcher := _watcher.get():
        watcher.product(x, weight)
    return cast(Tensor, torch_ops.block_matmul(x, weight))


def block_gather(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of a packed weight, as float32."""
    return cast(Tensor, torch_ops.block_gather(ids, weight))


def cached_attention(
    *tensors: Tensor, num_heads: int, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, value, both caches, table, start, length and sinks → output and both caches."""
    found = torch_ops.cached_attention(
        *tensors, num_heads=num_heads, scale=scale, window=window, softcap=softcap
    )
    return cast(tuple[Tensor, Tensor, Tensor], found)


def routed_experts(*tensors: Tensor, activation: str, alpha: float, limit: float) -> Tensor:
    """x, the chosen experts and their weights, then gate, up and down and the bias of each."""
    if watcher := _watcher.get():
        watcher.experts(tensors, activation, alpha, limit)
    found = torch_ops.routed_experts(*tensors, activation=activation, alpha=alpha, limit=limit)
    return cast(Tensor, found)


def latent_attention(
    *tensors: Tensor, num_heads: int, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """query, latent, key_rope, up, cache, table, start and length → output and cache."""
    if watcher := _watcher.get():
        watcher.product(tensors[1], tensors[3])
    found = torch_ops.latent_attention(*tensors, num_heads=num_heads, scale=scale, window=window)
    return cast(tuple[Tensor, Tensor], found)


def causal_conv(*tensors: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """x, weight, bias, state and length → output and state."""
    return cast(tuple[Tensor, Tensor], torch_ops.causal_conv(*tensors, activation=activation))


def state_space_dual(*tensors: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """x, the steps, the decay, writes, reads, skip, state and length → output and state."""
    return cast(tuple[Tensor, Tensor], torch_ops.state_space_dual(*tensors, groups=groups))


def gated_delta(*tensors: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """query, key, value, the logs of the decay, beta, state and length → output and state."""
    found = torch_ops.gated_delta(*tensors, num_heads=num_heads, scale=scale)
    return cast(tuple[Tensor, Tensor], found)


def selective_scan(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """x and the steps, the decay, writes, reads, state and length → output and state."""
    return cast(tuple[Tensor, Tensor], torch_ops.selective_scan(*tensors))
