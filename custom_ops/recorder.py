"""Python calls go in, ONNX nodes come out: `op("Add", x, 1)`; a literal becomes a Constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgewright.custom_ops.spec import DOMAIN, OpSpec

OPSET = 23

Literal = int | float | tuple[int, ...]
Attribute = int | float | str | Sequence[int] | ir.Attr | ir.Graph


class Recorder:
    """Records the nodes of one function or subgraph, in standard ops alone.

    A subgraph needs a prefix: its names may not hide those of the graph around it.
    """

    def __init__(self, prefix: str = "") -> None:
        self._tape = ir.tape.Tape()
        self._prefix = prefix
        self._constants: dict[tuple[type, Literal], ir.Value] = {}

    def __call__(
        self, op_type: str, *inputs: ir.Value | Literal, **attributes: Attribute
    ) -> ir.Value:
        values = [x if isinstance(x, ir.Value) else self.constant(x) for x in inputs]
        output = ir.Value(name=f"{self._prefix}{op_type}_{len(self._tape.nodes)}")
        return self._tape.op(op_type, values, attributes, output=output)

    def constant(self, literal: Literal) -> ir.Value:
        """An int or float is a scalar, a tuple a vector of int64."""
        key = (type(literal), literal)
        if key not in self._constants:
            kind = {int: "value_int", float: "value_float", tuple: "value_ints"}[type(literal)]
            self._constants[key] = self("Constant", **{kind: literal})
        return self._constants[key]

    def attribute(self, name: str, kind: ir.AttributeType) -> ir.Value:
        """The value of the enclosing function's attribute."""
        field = {ir.AttributeType.INT: "value_int", ir.AttributeType.FLOAT: "value_float"}[kind]
        return self("Constant", **{field: ir.RefAttr(field, name, kind)})

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """One dimension, as a vector of one element."""
        return self("Shape", value, start=axis, end=axis + 1)

    def graph(self, outputs: Sequence[ir.Value], inputs: Sequence[ir.Value] = ()) -> ir.Graph:
        imports = {"": OPSET}
        return ir.Graph(inputs, outputs, nodes=self._tape.nodes, opset_imports=imports, name="body")


@dataclass(frozen=True)
class RecordedFunction:
    """An op's body, written as Python that records nodes; used like an onnxscript function."""

    spec: OpSpec
    record: Callable[..., Sequence[ir.Value]]  # (Recorder, *inputs) -> outputs

    def to_ir(self) -> ir.Function:
        op = Recorder()
        inputs = [ir.Value(name=tensor.name) for tensor in self.spec.inputs]
        outputs = self.record(op, *inputs)
        for value, tensor in zip(outputs, self.spec.outputs, strict=True):
            value.name = tensor.name
        return ir.Function(
            DOMAIN,
            self.spec.name,
            graph=op.graph(outputs, inputs),
            attributes=[
                ir.Attr(a.name, ir.AttributeType[a.type.upper()], a.default)
                for a in self.spec.attributes
            ],
        )

    def to_function_proto(self) -> onnx.FunctionProto:
        return ir.to_proto(self.to_ir())
