"""Mixer: what a layer does along the sequence, [batch, seq, hidden] → the same, with its states."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from edgewright.artifacts.states import StateSpec
from edgewright.model.call import Call


class Mixer(nn.Module, ABC):
    @abstractmethod
    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        """The tensors that outlive a call, in the order that `forward` takes and gives them."""

    @abstractmethod
    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A step at or past `call.length` changes no state."""
