"""Call: what every layer of one forward call shares, worked out once from the graph's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewright.model.rope import Rope, RopeSpec


@dataclass(frozen=True)
class Call:
    start: Tensor  # [batch] tokens already in the states
    length: Tensor  # [batch] real tokens in this call
    positions: Tensor  # [batch, seq] of each token from the start of its row
    table: Tensor  # [batch, pages] where each row's cache pages lie; contiguous: its own row
    embedding: Tensor  # [batch, seq, hidden] of the tokens, as the first layer gets it
    rotations: dict[RopeSpec, tuple[Tensor, Tensor]]  # cos, sin [batch, seq, dim / 2]

    @staticmethod
    def prepare(embedding: Tensor, start: Tensor, length: Tensor, ropes: list[Rope]) -> Call:
        batch, seq = embedding.shape[:2]
        steps = torch.arange(seq, device=embedding.device)
        positions = start[:, None] + steps[None, :]
        table = torch.arange(batch, device=embedding.device)[:, None]
        total = start + length
        rotations = {rope.spec: rope(positions, total) for rope in ropes}
        return Call(start, length, positions, table, embedding, rotations)
