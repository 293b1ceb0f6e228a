"""StateSpaceDual in torch: the steps of a call and the state before them go in, the outputs and the
state after them come out. Chunks of steps are matrix products, so that it also trains well.

    state = exp(dt * a) * state + dt * b x^T;    y = state^T c + skip * x
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

_CHUNK = 64  # steps; the work within a chunk grows with its square


def reference(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    state: Tensor,
    length: Tensor,
    *,
    groups: int,
) -> tuple[Tensor, Tensor]:
    batch, seq = x.shape[:2]
    heads, size, width = state.shape[1:]  # H, N, P
    each = heads // groups
    chunk = min(_CHUNK, max(seq, 1))
    chunks = -(-seq // chunk)
    real = torch.arange(seq, device=x.device) < length[:, None]

    def chunked(tensor: Tensor, *split: int) -> Tensor:
        """[B, K, *split, L, last] with zeros in the place of padded steps, whatever they hold."""
        tensor = tensor.masked_fill(~real[:, :, None], 0.0)
        tensor = pad(tensor, (0, 0, 0, chunks * chunk - seq))
        last = tensor.shape[2] // prod(split)
        tensor = tensor.reshape(batch, chunks, chunk, *split, last)
        return tensor.movedim(2, -2)

    steps = chunked(dt, groups, each)[..., 0]  # [B, K, G, E, L]: E heads a group
    inputs = chunked(x, groups, each)  # [B, K, G, E, L, P]
    writes = chunked(b, groups)  # [B, K, G, L, N]
    reads = chunked(c, groups)
    weighted = inputs * steps[..., None]

    # decay[i, j] is what is left at step i of what step j wrote.
    total = (steps * a.view(groups, each, 1)).double().cumsum(-1)  # float64: differences cancel
    since = total[..., :, None] - total[..., None, :]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
    decay = since.to(x.dtype).masked_fill(later, -torch.inf).exp()
    held = total.to(x.dtype).exp()[..., None]  # [B, K, G, E, L, 1], of the state before the chunk

    scores = reads @ writes.mT  # [B, K, G, L, L]
    within = (scores[:, :, :, None] * decay) @ weighted  # [B, K, G, E, L, P]
    added = writes.mT[:, :, :, None] @ (weighted * decay[..., -1, :, None])  # [B, K, G, E, N, P]

    current = state.view(batch, groups, each, size, width)
    before = []
    for k in range(chunks):
        before.append(current)
        current = current * held[:, k, :, :, -1:] + added[:, k]
    if chunks:
        within = within + held * (reads[:, :, :, None] @ torch.stack(before, 1))

    y = within + skip.view(groups, each, 1, 1) * inputs
    y = y.movedim(-2, 2).reshape(batch, chunks * chunk, heads * width)[:, :seq]
    is_written = (length > 0)[:, None, None, None]
    return y, torch.where(is_written, current.reshape(state.shape), state)


def fake(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    state: Tensor,
    length: Tensor,
    *,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The shapes and dtypes alone, for tracing with symbolic sizes."""
    return torch.empty_like(x), torch.empty_like(state)
