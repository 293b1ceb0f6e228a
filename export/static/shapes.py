"""StaticShapes: how a provider without dynamic shapes wants its two graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from edgewright.artifacts.states import StateLayout, Update

ComputeDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class StaticShapes:
    """One row at a time: `chunk` tokens of it in the prefill graph, one in the decode graph, and
    room for `capacity` of them in its states. Float states have the type that is computed in.
    `rewrites` are for ops that the provider has but should not use; they see float32."""

    chunk: int = 64
    capacity: int = 2048
    dtype: ComputeDtype = "float32"
    update: Update = "in_graph"
    rewrites: tuple[Callable[[ir.Model], None], ...] = ()

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
