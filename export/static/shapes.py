"""StaticShapes: how a provider without dynamic shapes wants its two graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import onnx_ir as ir

from edgewright.artifacts.states import StateLayout, Update
from edgewright.custom_ops.static_node import StaticNode

# None where the op's own static lowering is to be taken.
Lowering = Callable[[StaticNode], ir.Function | None]
ComputeDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Quantisation:
    """Nodes of these standard `ops` compute in 16-bit integers, and multiply with weights of so
    many `bits`. Those that come of our ops `apart` stay in floats, as does everything else."""

    bits: Literal[4, 8]
    ops: frozenset[str]
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StaticShapes:
    """One row at a time: `chunk` tokens of it in the prefill graph, one in the decode graph, and
    room for `capacity` of them in its states. Float states have the type that is computed in.
    `wide_ops` are operators of the graph that compute in float32 all the same;
    `op_chunks` are the most tokens of a chunk where the graph has an op of ours by that name;
    `product_bits` are the widths in which packed products stay packed, as MatMulNBits;
    `lowerings` are the provider's own, by our op's name; `rewrites` are for ops that the provider
    has but should not use; they see float32."""

    chunk: int = 64
    capacity: int = 2048
    dtype: ComputeDtype = "float32"
    update: Update = "in_graph"
    op_chunks: Mapping[str, int] = field(default_factory=dict)
    wide_ops: frozenset[str] = frozenset()
    product_bits: tuple[int, ...] = ()
    lowerings: Mapping[str, Lowering] = field(default_factory=dict)
    rewrites: tuple[Callable[[ir.Model], None], ...] = ()
    quantise: Quantisation | None = None

    @property
    def compute_dtype(self) -> str:
        return self.dtype if self.quantise is None else "uint16"

    def within(self, max_context: int, ops: Iterable[str] = ()) -> StaticShapes:
        """No state has room for more than the model is good for, no chunk for more than its ops."""
        capacity = min(self.capacity, max_context)
        chunk = min(
            [self.chunk, capacity, *(self.op_chunks[op] for op in ops if op in self.op_chunks)]
        )
        return replace(self, capacity=capacity, chunk=chunk)

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
