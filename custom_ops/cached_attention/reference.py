"""CachedAttention in torch: queries, new keys and values and a paged cache go in, the attended
values and the cache with the new tokens come out. Functional, differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from edgewright.custom_ops import int8_rows_torch


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    start: Tensor,
    length: Tensor,
    sinks: Tensor,
    *,
    num_heads: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, seq = query.shape[:2]
    kv_heads, page = key_cache.shape[1:3]
    offset = torch.arange(seq, device=query.device)
    position = start[:, None] + offset  # [B, S]
    real = offset < length[:, None]

    pages = table.gather(1, torch.where(real, position, 0) // page)
    slots = position % page
    written_keys = _append(key_cache, key, pages[real], slots[real], real)
    written_values = _append(value_cache, value, pages[real], slots[real], real)

    total = max(int((start + length).max()), 1)
    keys = _read(written_keys, table, start + length, total).to(query.dtype)  # [B, KV, T, D]
    values = _read(written_values, table, start + length, total).to(query.dtype)

    queries = query.view(batch, seq, kv_heads, num_heads // kv_heads, -1).permute(0, 2, 3, 1, 4)
    scores = (queries * scale) @ keys[:, :, None].transpose(-1, -2)  # [B, KV, G, S, T]
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    distance = position[:, :, None] - torch.arange(total, device=query.device)
    allowed = (distance >= 0) & real[:, :, None]
    if window > 0:
        allowed = allowed & (distance < window)
    sink = sinks.to(query.dtype).expand(num_heads).view(1, kv_heads, -1, 1, 1)
    weights = _softmax_with_sink(scores, allowed[:, None, None], sink)
    attended = (weights @ values[:, :, None]).permute(0, 3, 1, 2, 4)  # [B, S, KV, G, Dv]
    # Zero even where an empty row's memory holds a NaN.
    output = attended.reshape(batch, seq, -1).masked_fill(~real[:, :, None], 0.0)
    return output, written_keys, written_values


def fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    table: Tensor,
    start: Tensor,
    length: Tensor,
    sinks: Tensor,
    *,
    num_heads: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes and dtypes alone, for tracing with symbolic sizes."""
    width = num_heads * value_cache.shape[3]
    output = query.new_empty((query.shape[0], query.shape[1], width))
    return output, torch.empty_like(key_cache), torch.empty_like(value_cache)


def _append(cache: Tensor, new: Tensor, pages: Tensor, slots: Tensor, real: Tensor) -> Tensor:
    """The cache with the real tokens of `new` [B, S, KV*D] at (page, slot)."""
    tokens = new[real].view(-1, cache.shape[1], cache.shape[3])
    is_int8 = cache.dtype == torch.int8
    tokens = int8_rows_torch.encode(tokens) if is_int8 else tokens.to(cache.dtype)
    return cache.transpose(1, 2).index_put((pages, slots), tokens).transpose(1, 2).contiguous()


def _read(cache: Tensor, table: Tensor, totals: Tensor, total: int) -> Tensor:
    """[B, KV, total, D] through the table. Positions that a row does not have repeat its last
    one, so that neither memory nor table entries beyond a row's own tokens are looked at."""
    page = cache.shape[2]
    position = torch.arange(total, device=cache.device)
    position = torch.minimum(position, (totals[:, None] - 1).clamp(min=0))  # [B, T]
    rows = cache.transpose(1, 2)[table.gather(1, position // page), position % page]
    if cache.dtype == torch.int8:
        rows = int8_rows_torch.decode(rows)
    return rows.transpose(1, 2)


def _softmax_with_sink(scores: Tensor, allowed: Tensor, sink: Tensor) -> Tensor:
    """Softmax over the allowed keys with the sink in the denominator; all zero without any key."""
    scores = scores.masked_fill(~allowed, -torch.inf)
    peak = torch.maximum(scores.amax(-1, keepdim=True), sink).detach()
    peak = torch.where(torch.isinf(peak), torch.zeros_like(peak), peak)
    weights = torch.exp(scores - peak)
    mass = weights.sum(-1, keepdim=True) + torch.exp(sink - peak)
    return weights / torch.where(mass > 0, mass, torch.ones_like(mass))
