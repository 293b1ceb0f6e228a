"""StaticShapes: how a provider without dynamic shapes wants its two graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgewright.artifacts.states import StateLayout, Update

ComputeDtype = Literal["float32", "float16"]
TokenDtype = Literal["int64", "int32"]


@dataclass(frozen=True)
class StaticShapes:
    """One row at a time: `chunk` tokens of it in the prefill graph, one in the decode graph, and
    room for `capacity` of them in its states. Float states have the type that is computed in."""

    chunk: int = 64
    capacity: int = 2048
    dtype: ComputeDtype = "float32"
    update: Update = "in_graph"
    tokens: TokenDtype = "int64"

    def within(self, max_context: int) -> StaticShapes:
        """No state has room for more than the model is good for."""
        capacity = min(self.capacity, max_context)
        return replace(self, capacity=capacity, chunk=min(self.chunk, capacity))

    def layout(self, canonical: StateLayout) -> StateLayout:
        return StateLayout(
            tuple(
                replace(
                    spec,
                    dtype=self.dtype if spec.dtype == "float32" else spec.dtype,
                    update=self.update,
                )
                for spec in canonical
            )
        )
