"""LatentAttention in torch: queries, new latents and a paged cache go in, the attended values and
the cache with the new tokens come out. Functional, differentiable; keys and values are expanded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from edgewright.custom_ops import int8_rows_torch
from edgewright.custom_ops.packed_reference import dequantised


def reference(
    query: Tensor,
    latent: Tensor,
    key_rope: Tensor,
    up: Tensor,
    cache: Tensor,
    table: Tensor,
    start: Tensor,
    length: Tensor,
    *,
    num_heads: int,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    if up.dtype == torch.uint8:
        (up,) = dequantised(up)
    batch, seq = query.shape[:2]
    rank, rope, page = latent.shape[2], key_rope.shape[2], cache.shape[1]
    offset = torch.arange(seq, device=query.device)
    position = start[:, None] + offset  # [B, S]
    real = offset < length[:, None]

    pages = table.gather(1, torch.where(real, position, 0) // page)
    tokens = torch.cat((_stored(latent[real], cache), _stored(key_rope[real], cache)), -1)
    written = cache.index_put((pages[real], (position % page)[real]), tokens)

    held = start + length
    total = max(int(held.max()), 1)
    rows = _read(written, table, held, total)  # [B, T, R+Dr]
    latents = _decoded(rows[..., :rank]).to(query.dtype)
    rotated = _decoded(rows[..., rank:]).to(query.dtype)
    queries = (query * scale).view(batch, seq, num_heads, -1).transpose(1, 2)  # [B, H, S, Dn+Dr]
    nope = queries.shape[3] - rope
    expanded = linear(latents, up.to(query.dtype))
    by_head = expanded.view(batch, total, num_heads, -1).transpose(1, 2)  # [B, H, T, Dn+Dv]
    keys, values = by_head[..., :nope], by_head[..., nope:]

    scores = queries[..., :nope] @ keys.transpose(-1, -2)  # [B, H, S, T]
    scores = scores + queries[..., nope:] @ rotated[:, None].transpose(-1, -2)
    distance = position[:, :, None] - torch.arange(total, device=query.device)
    allowed = distance >= 0
    if window > 0:
        # A padded query sees something whatever its position, so that no gradient is NaN.
        allowed = allowed & ((distance < window) | ~real[:, :, None])
    weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    output = (weights @ values).transpose(1, 2).flatten(2)
    # Zero even where an empty row's memory holds a NaN.
    return output.masked_fill(~real[:, :, None], 0.0), written


def fake(
    query: Tensor,
    latent: Tensor,
    key_rope: Tensor,
    up: Tensor,
    cache: Tensor,
    table: Tensor,
    start: Tensor,
    length: Tensor,
    *,
    num_heads: int,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """The shapes and dtypes alone, for tracing with symbolic sizes."""
    assert up.dtype != torch.uint8, "a traced weight is of floats; packing comes afterwards"
    nope = query.shape[2] // num_heads - key_rope.shape[2]
    width = up.shape[0] - num_heads * nope
    return query.new_empty((*query.shape[:2], width)), torch.empty_like(cache)


def _stored(new: Tensor, cache: Tensor) -> Tensor:
    return int8_rows_torch.encode(new) if cache.dtype == torch.int8 else new.to(cache.dtype)


def _decoded(rows: Tensor) -> Tensor:
    return int8_rows_torch.decode(rows) if rows.dtype == torch.int8 else rows


def _read(cache: Tensor, table: Tensor, held: Tensor, total: int) -> Tensor:
    """[B, total, R+Dr] through the table. Positions that a row does not have repeat its last
    one, so that neither memory nor table entries beyond a row's own tokens are looked at."""
    page = cache.shape[1]
    position = torch.arange(total, device=cache.device)
    position = torch.minimum(position, (held[:, None] - 1).clamp(min=0))  # [B, T]
    return cache[table.gather(1, position // page), position % page]
