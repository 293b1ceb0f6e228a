"""Mixer: what a layer does along the sequence, [batch, seq, hidden] → the same, with its states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.states import StateSpec
from edgewright.model.call import Call
from edgewright.model.config import CacheDtype

_LEAST_INT8_ROW = 8  # values: each gives a bit to the row's scale


class Mixer(nn.Module, ABC):
    @abstractmethod
    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        """The tensors that outlive a call, in the order that `forward` takes and gives them."""

    @abstractmethod
    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A step at or past `call.length` changes no state."""

    def share(self, earlier: Sequence[Mixer]) -> None:
        """Take over what this one has in common with the mixers of earlier layers."""


def check_cache_rows(dtype: CacheDtype, **rows: int) -> None:
    """`rows` names what a mixer keeps of a token, and how many values each has."""
    for name, size in rows.items():
        if dtype == "int8" and size < _LEAST_INT8_ROW:
            raise ExportError(
                f"{name} is {size}; an int8 cache takes rows of {_LEAST_INT8_ROW} values or more:"
                " choose float16 or float32"
            )
