"""A node of ours and the sizes of the call it stands in: what each op's static lowering reads."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.states import Update
from edgewright.custom_ops import OPS


@dataclass(frozen=True)
class StaticNode:
    """`capacity` is what an append state holds. A state's sizes, and the last one of anything else,
    are numbers in the graph."""

    node: ir.Node
    batch: int
    seq: int
    capacity: int
    update: Update

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the input of that name, all of it known: a weight's or a state's."""
        return tuple(self.size(name, axis) for axis in range(self.rank(name)))

    def size(self, name: str, axis: int = -1) -> int:
        size = self._sizes(name)[axis]
        if isinstance(size, int):
            return size
        raise ExportError(f"node {self.node.name}: the size of {name} at axis {axis} is not known")

    def rank(self, name: str) -> int:
        return len(self._sizes(name))

    def dtype(self, name: str) -> ir.DataType | None:
        return self._input(name).dtype

    def integer(self, name: str) -> int:
        return self.node.attributes[name].as_int() if name in self.node.attributes else 0

    def number(self, name: str) -> float:
        return self.node.attributes[name].as_float() if name in self.node.attributes else 0.0

    def text(self, name: str) -> str:
        return self.node.attributes[name].as_string()

    def is_constant(self, name: str, value: float) -> bool:
        """Whether that input is an initializer of this one value."""
        held = self._input(name).const_value
        return held is not None and held.size == 1 and float(held.numpy().reshape(())) == value

    def _sizes(self, name: str) -> ir.Shape:
        shape = self._input(name).shape
        if shape is None:
            raise ExportError(f"node {self.node.name}: the shape of {name} is not known")
        return shape

    def _input(self, name: str) -> ir.Value:
        names = [tensor.name for tensor in OPS[self.node.op_type].inputs]
        value = self.node.inputs[names.index(name)]
        assert value is not None
        return value
