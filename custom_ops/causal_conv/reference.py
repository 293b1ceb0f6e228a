"""CausalConv in torch: the definition that body, lowering and kernel are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, length: Tensor, *, activation: str
) -> tuple[Tensor, Tensor]:
    seq, taps = x.shape[1], len(weight)
    seen = torch.cat([state, x], 1)  # [B, K-1+S, C]
    y = bias.expand_as(x)
    for tap in range(taps):
        y = torch.addcmul(y, weight[tap], seen[:, tap : tap + seq])
    real = torch.arange(seq, device=x.device) < length[:, None]
    y = torch.where(real[:, :, None], activate(y, activation), 0.0)
    kept = length[:, None] + torch.arange(taps - 1, device=x.device)  # [B, K-1]
    return y, seen.gather(1, kept[:, :, None].expand_as(state))


def activate(y: Tensor, activation: str) -> Tensor:
    match activation:
        case "none":
            return y
        case "silu":
            return silu(y)
    raise ValueError(f"CausalConv has no activation {activation!r}")


def fake(
    x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, length: Tensor, *, activation: str
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(state, memory_format=contiguous),
    )
