"""Stored: a graph whose large weights are blobs of the package, and how many bits that makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgewright.artifacts import Blob
from edgewright.export.graph import Graph


@dataclass(frozen=True)
class Stored:
    """`packed` and `kept` are blobs by the initializers' names: quantised, and the checkpoint's own
    values. `kept_bytes` counts what lies within the graph too."""

    graph: Graph
    parameters: int
    packed: Mapping[str, Blob]
    packed_dtypes: tuple[str, ...]
    kept: Mapping[str, Blob]
    kept_bytes: int
    kept_dtypes: tuple[str, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        blobs = (*self.packed.values(), *self.kept.values())
        return tuple(dict.fromkeys(blob.path for blob in blobs))

    @property
    def bits_per_weight(self) -> float:
        """The mean over every parameter, with all that is stored for them."""
        packed = sum(blob.size for blob in self.packed.values())
        return 8 * (packed + self.kept_bytes) / self.parameters

    @property
    def dtypes(self) -> tuple[str, ...]:
        return (*self.packed_dtypes, *self.kept_dtypes)
