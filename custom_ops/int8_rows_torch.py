"""Rows of floats go in, rows of int8 that carry their own scale come out, and back: in torch, the
definition that kernels (native/int8_row.h) and graphs (int8_rows.py) repeat bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from edgewright.custom_ops.int8_rows import FRACTIONS, LEAST, LOWEST_EXPONENT, MOST


def encode(x: Tensor) -> Tensor:
    """float32 [..., n] → int8 [..., n], n >= 8. A NaN becomes 0, an infinity the largest value."""
    x = torch.where(x == x, x, torch.zeros_like(x))
    peak = x.abs().amax(-1, keepdim=True)
    scales = _scales(x.device)
    code = (peak > MOST * scales[:-1]).sum(-1, keepdim=True)  # the last scale takes what is left
    bits = torch.where(_lane(x) < LEAST, code >> _lane(x).clamp(max=LEAST), 0) & 1
    step = torch.where(_lane(x) < LEAST, 2.0, 1.0)
    low, high = torch.where(step > 1, -64.0, -MOST), torch.where(step > 1, 63.0, MOST)
    whole = torch.round((x / scales[code] - bits) / step).clamp(low, high)
    return (step * whole + bits).to(torch.int8)


def decode(rows: Tensor) -> Tensor:
    """int8 [..., n] → float32 [..., n]."""
    bits = rows[..., :LEAST].long() & 1
    code = (bits << torch.arange(LEAST, device=rows.device)).sum(-1, keepdim=True)
    return rows.to(torch.float32) * _scales(rows.device)[code]


def _scales(device: torch.device) -> Tensor:
    octaves = torch.arange(32, dtype=torch.float32, device=device) + LOWEST_EXPONENT
    fractions = torch.tensor(FRACTIONS, dtype=torch.float32, device=device)
    return (torch.exp2(octaves)[:, None] * fractions).flatten()


def _lane(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], device=x.device)
