"""GatedDelta in torch, one step after the other: the steps of a call and the state before them go
in, the outputs and the state after them come out.

    state = exp(decay) * state
    state = state + key (beta * (value - key^T state))^T
    y = scale * query^T state
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    length: Tensor,
    *,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, seq = query.shape[:2]
    size, width = state.shape[2:]  # Dk, Dv
    real = torch.arange(seq, device=query.device) < length[:, None]

    def by_head(tensor: Tensor, heads: int) -> Tensor:
        """[B, S, H, last] with zeros in the place of padded steps, whatever they hold."""
        tensor = tensor.masked_fill(~real[:, :, None], 0.0)
        tensor = tensor.view(batch, seq, heads, tensor.shape[2] // heads)
        return tensor.repeat_interleave(num_heads // heads, dim=2)

    key_heads = key.shape[2] // size
    queries = by_head(query * scale, key_heads).unbind(1)  # S of [B, H, Dk]
    keys = by_head(key, key_heads).unbind(1)
    values = by_head(value, num_heads).unbind(1)
    decays = by_head(decay, num_heads).exp()[..., None].unbind(1)  # S of [B, H, 1 or Dk, 1]
    betas = by_head(beta, num_heads).unbind(1)

    current, outputs = state, []
    for q, k, v, left, rate in zip(queries, keys, values, decays, betas, strict=True):
        current = current * left
        known = (k[:, :, None] @ current)[:, :, 0]
        current = current + k[..., None] * (rate * (v - known))[:, :, None]
        outputs.append((q[:, :, None] @ current)[:, :, 0])
    y = torch.stack(outputs, 1) if outputs else value.new_empty((batch, 0, num_heads, width))
    is_written = (length > 0)[:, None, None, None]
    return y.flatten(2), torch.where(is_written, current, state)


def fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    state: Tensor,
    length: Tensor,
    *,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The shapes and dtypes alone, for tracing with symbolic sizes."""
    return torch.empty_like(value), torch.empty_like(state)
