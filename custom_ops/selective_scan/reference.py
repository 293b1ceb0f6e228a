"""SelectiveScan in torch: the definition that body, lowering and kernel are held to."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    real = (torch.arange(x.shape[1], device=x.device) < length[:, None])[:, :, None]  # [B, S, 1]
    # A step that is not real decays by exp(0) and adds 0.
    x, dt, b, c = (torch.where(real, value, 0.0) for value in (x, dt, b, c))
    decay = torch.exp(dt[:, :, None] * a)  # [B, S, N, D]
    added = x[:, :, None] * b[:, :, :, None]
    passed, h = [], state.clone()
    # unbind, because the gradient of one step taken by index is as large as all steps.
    for keep, new in zip(decay.unbind(1), added.unbind(1), strict=True):
        h = torch.addcmul(new, keep, h)
        passed.append(h)
    states = torch.stack(passed, 1) if passed else decay
    return torch.einsum("bsn,bsnd->bsd", c, states), h


def fake(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, length: Tensor
) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous),
        torch.empty_like(state, memory_format=contiguous),
    )
