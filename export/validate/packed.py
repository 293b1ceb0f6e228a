"""A package with packed weights goes in; what it has of each of the decoder's parameters, out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgewright.artifacts import Package
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.manifest import Variant
from edgewright.custom_ops.packed_weights import QuantizedMatrix, QuantizedRows, pack, unpack
from edgewright.export.exporter import traced_graph
from edgewright.export.packing import joint_name
from edgewright.export.portable_weights import PortableRows
from edgewright.export.quantize.imported import imported_groups
from edgewright.export.quantize.plan import WeightGroup, plan_of
from edgewright.model.loading import LazyModel, Readable


@dataclass(frozen=True)
class _Rows:
    """Rows of a packed weight, packed by themselves: the ops take them as they take floats."""

    path: Path
    first: int
    count: int

    def read(self) -> torch.Tensor:
        blob = np.fromfile(self.path, dtype=np.uint8)
        stack = unpack(blob)
        if self.count < stack[0].rows:
            blob = pack([_cut(matrix, self.first, self.first + self.count) for matrix in stack])
        return torch.from_numpy(blob)


@dataclass(frozen=True)
class _Values:
    """Rows of what was made of a packed weight for MatMulNBits, as the numbers they stand for."""

    arrays: _Arrays
    name: str
    first: int
    count: int

    def read(self) -> torch.Tensor:
        runs, i = [], 0
        while f"{self.name}.codes{i}" in self.arrays.places:
            runs.append(_portable(self.arrays, self.name, i).values())
            i += 1
        values = np.concatenate(runs)[self.first : self.first + self.count]
        if f"{self.name}.columns" in self.arrays.places:
            values *= self.arrays.read(f"{self.name}.columns")
        if f"{self.name}.order" in self.arrays.places:
            values = values[:, np.argsort(self.arrays.read(f"{self.name}.order"))]
        return torch.from_numpy(values)


def packed_parameters(
    package: Package, variant: Variant, model: LazyModel
) -> Mapping[str, Readable]:
    """By name; what the package has in the checkpoint's own values is not in it."""
    arrays = _Arrays(package, package.read_verified(variant.graphs["step"]))
    if not any(".packed" in name for name in arrays.places):
        return {}
    found: dict[str, Readable] = {}
    plan = plan_of(traced_graph(model).model.graph, model)
    if package.manifest.provenance.options.get("bits") is None:
        plan = tuple(each.group for each in imported_groups(model, plan).values())
    for group in plan:
        first = 0
        for name, rows in zip(group.names, group.rows, strict=True):
            found[name] = _parameter(arrays, group, first, rows)
            first += rows
    return found


def _parameter(arrays: _Arrays, group: WeightGroup, first: int, rows: int) -> Readable:
    name = f"{joint_name(group.names)}.packed"
    if name in arrays.places:
        return _Rows(arrays.path(name), first, rows)
    if f"{name}.codes0" in arrays.places:
        return _Values(arrays, name, first, rows)
    raise PackageError(f"{arrays.package.root.name} has no weight {name}; export it again")


def _cut(matrix: QuantizedMatrix, start: int, stop: int) -> QuantizedMatrix:
    parts: list[QuantizedRows] = []
    base = 0
    for segment in matrix.segments:
        low, high = max(start - base, 0), min(stop - base, segment.rows)
        if low < high:
            parts.append(segment.rows_between(low, high))
        base += segment.rows
    return replace(matrix, segments=tuple(parts))


def _portable(arrays: _Arrays, name: str, run: int) -> PortableRows:
    codes = arrays.read(f"{name}.codes{run}")
    scales = arrays.read(f"{name}.scales{run}")
    zeros = f"{name}.zeros{run}"
    node = next(
        n for n in arrays.nodes if f"{name}.codes{run}" in n.input and n.op_type != "Gather"
    )
    sizes = {attribute.name: attribute.i for attribute in node.attribute}
    return PortableRows(
        sizes["bits"],
        sizes["block_size"],
        sizes["K"],
        codes,
        scales,
        arrays.read(zeros) if zeros in arrays.places else None,
    )


@dataclass(frozen=True, eq=False)
class _Arrays:
    """A graph's weights, read where they lie in the package."""

    package: Package
    graph: bytes

    @cached_property
    def _parsed(self) -> onnx.GraphProto:
        parsed: onnx.GraphProto = onnx.ModelProto.FromString(self.graph).graph
        return parsed

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self._parsed.node)

    @cached_property
    def places(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self._parsed.initializer if tensor.external_data}

    def path(self, name: str) -> Path:
        return self.package.verified_path(self._where(name)["location"])

    def read(self, name: str) -> NDArray[Any]:
        tensor, where = self.places[name], self._where(name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        size = int(np.prod(tensor.dims))
        values = np.fromfile(self.path(name), dtype, size, offset=int(where["offset"]))
        return values.reshape(tuple(tensor.dims))

    def _where(self, name: str) -> Mapping[str, str]:
        return {entry.key: entry.value for entry in self.places[name].external_data}
