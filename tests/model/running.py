"""Our torch decoder run over a prompt in chunks: token ids in, logits [tokens, vocab] out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgewright.model.decoder import Decoder


def run_in_chunks(decoder: Decoder, ids: Sequence[int], chunks: Sequence[int]) -> Tensor:
    """The logits of every position, from a fresh state that just holds all of `ids`."""
    assert sum(chunks) == len(ids)
    states = [torch.zeros(spec.resolve(1, len(ids))) for spec in decoder.layout]
    parts: list[Tensor] = []
    start = 0
    with torch.no_grad():
        for count in chunks:
            logits, states = decoder(
                torch.tensor([ids[start : start + count]]),
                torch.tensor([start]),
                torch.tensor([count]),
                torch.arange(count)[None],
                states,
            )
            parts.append(logits[0])
            start += count
    return torch.cat(parts)


def split(length: int, chunk: int) -> list[int]:
    return [min(chunk, length - start) for start in range(0, length, chunk)]
