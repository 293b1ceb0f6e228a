"""StateSpec and StateLayout: one description of graph inputs, outputs and runtime buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from edgewright.artifacts.strict_json import Items, Range, Text

Growth = Literal["append", "ring", "replace"]
Update = Literal["in_graph", "delta"]
StateDtype = Literal["float32", "float16", "int8"]
Dim = Annotated[int, Range(1, (1 << 31) - 1)] | Literal["batch", "capacity"]

_ELEMENT_BYTES: dict[StateDtype, int] = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class StateSpec:
    """One tensor that outlives a call. The first dimension is always `batch`."""

    name: Annotated[str, Text(256, r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", "a dotted name")]
    shape: Annotated[tuple[Dim, ...], Items(1, 8)]
    dtype: StateDtype
    growth: Growth
    update: Update = "in_graph"

    @property
    def input_name(self) -> str:
        return f"past.{self.name}"

    @property
    def output_name(self) -> str:
        return f"present.{self.name}"

    def resolve(self, batch: int, capacity: int) -> tuple[int, ...]:
        sizes = {"batch": batch, "capacity": capacity}
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)

    @property
    def bytes_per_token(self) -> int:
        """Bytes one more token of one row costs; 0 for a state of fixed size."""
        return self._row_bytes if "capacity" in self.shape else 0

    @property
    def bytes_fixed(self) -> int:
        """Bytes one row costs whatever its length."""
        return 0 if "capacity" in self.shape else self._row_bytes

    @property
    def _row_bytes(self) -> int:
        size = _ELEMENT_BYTES[self.dtype]
        for dim in self.shape:
            size *= dim if isinstance(dim, int) else 1
        return size


@dataclass(frozen=True)
class StateLayout:
    """The states of one graph, in the order the graph takes and gives them."""

    specs: Annotated[tuple[StateSpec, ...], Items(0, 10_000)]

    def __iter__(self) -> Iterator[StateSpec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def bytes_per_token(self) -> int:
        return sum(spec.bytes_per_token for spec in self.specs)

    @property
    def bytes_fixed(self) -> int:
        return sum(spec.bytes_fixed for spec in self.specs)
