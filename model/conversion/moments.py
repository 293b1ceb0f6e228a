"""A decoder and rows of tokens go in; what its attention layers see on them comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from edgewright.model.call import Call
from edgewright.model.decoder import Decoder
from edgewright.model.mixers.attention import Attention

# Rows whose attention weights are looked at; they cost the square of their length.
_WEIGHED_ROWS = 4


@dataclass
class Moments:
    """Of one attention layer."""

    inputs: Tensor  # float64 [hidden + 1, hidden + 1]: the mean of h h^T, h with a one at its end
    distances: Tensor  # float64 [tokens]: the share of attention that goes so far back


@torch.no_grad()
def measure(
    decoder: Decoder, rows: Tensor, advance: Callable[[int], None] = lambda _: None
) -> list[Moments]:
    """rows [n, tokens], each a text of its own."""
    hidden, tokens = decoder.config.hidden_size, rows.shape[1]
    found = [
        Moments(
            torch.zeros(hidden + 1, hidden + 1, dtype=torch.float64),
            torch.zeros(tokens, dtype=torch.float64),
        )
        for _ in decoder.layers
    ]
    hooks = [
        cast(Attention, layer.mixer).register_forward_pre_hook(_watch(moments))
        for layer, moments in zip(decoder.layers, found, strict=True)
    ]
    try:
        for row in rows:
            run(decoder, row, last=True)
            advance(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    for moments in found:
        moments.inputs /= rows.numel()
        moments.distances /= moments.distances.sum()
    return found


@torch.no_grad()
def run(decoder: Decoder, row: Tensor, last: bool = False) -> Tensor:
    """The logits of every token of one row, or of its last [wanted, vocab]."""
    tokens = len(row)
    wanted = torch.arange(tokens - 1 if last else 0, tokens)[None]
    states = [torch.zeros(spec.resolve(1, tokens)) for spec in decoder.layout]
    start, length = torch.tensor([0]), torch.tensor([tokens])
    logits, _ = decoder(row[None], start, length, wanted, states)
    return cast(Tensor, logits[0])


@torch.no_grad()
def mean_loss(
    decoder: Decoder, rows: Tensor, advance: Callable[[int], None] = lambda _: None
) -> float:
    """Nats a token, over rows [n, tokens + 1]."""
    total = 0.0
    for row in rows:
        total += float(torch.nn.functional.cross_entropy(run(decoder, row[:-1]), row[1:]))
        advance(len(row))
    return total / len(rows)


def _watch(moments: Moments) -> Callable[[torch.nn.Module, tuple[object, ...]], None]:
    weighed = 0

    def look(mixer: torch.nn.Module, arguments: tuple[object, ...]) -> None:
        nonlocal weighed
        x, call = cast(Tensor, arguments[0]), cast(Call, arguments[1])
        seen = torch.nn.functional.pad(x[0], (0, 1), value=1.0).double()
        moments.inputs += seen.T @ seen
        if weighed < _WEIGHED_ROWS:
            weighed += 1
            moments.distances += _distances(cast(Attention, mixer), x, call)

    return look


def _distances(mixer: Attention, x: Tensor, call: Call) -> Tensor:
    """Attention weights summed over heads and queries, by how far back the key is [tokens]."""
    spec, tokens = mixer.spec, x.shape[1]
    query, key = mixer.rotated(x, call)
    query = query.view(tokens, spec.kv_heads, -1, spec.head_dim).permute(1, 2, 0, 3)
    key = key.view(tokens, spec.kv_heads, 1, spec.head_dim).permute(1, 2, 3, 0)
    steps = torch.arange(tokens)
    back = steps[:, None] - steps[None, :]
    hidden = (back < 0) | (back >= spec.window if spec.window else back < 0)
    weights = (query @ key * spec.scale).masked_fill(hidden, -torch.inf).softmax(-1)
    by_distance = torch.zeros(tokens, dtype=torch.float64)
    return by_distance.index_add(
        0, back.clamp_min(0).flatten(), weights.sum((0, 1)).double().flatten()
    )
