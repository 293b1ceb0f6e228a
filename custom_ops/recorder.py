"""Python calls go in, ONNX nodes come out: `op("Add", x, 1)`; a literal becomes a Constant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgewright.custom_ops.spec import DOMAIN, OpSpec

OPSET = 23
MICROSOFT = "com.microsoft"

Literal = int | float | tuple[int, ...] | tuple[float, ...]
Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.Attr | ir.Graph


class Recorder:
    """Records the nodes of one function or subgraph, in standard ops alone.

    A subgraph needs a prefix: its names may not hide those of the graph around it.
    """

    def __init__(self, prefix: str = "") -> None:
        self._tape = ir.tape.Tape()
        self._prefix = prefix
        self._constants: dict[tuple[str, Literal], ir.Value] = {}

    def __call__(
        self, op_type: str, *inputs: ir.Value | Literal, **attributes: Attribute
    ) -> ir.Value:
        values = [x if isinstance(x, ir.Value) else self.constant(x) for x in inputs]
        output = ir.Value(name=f"{self._prefix}{op_type}_{len(self._tape.nodes)}")
        return self._tape.op(op_type, values, attributes, output=output)

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What was recorded, to be put into a graph that there is already."""
        return self._tape.nodes

    def ours(self, name: str, *inputs: ir.Value) -> ir.Value:
        """A call of a function that bodies share."""
        output = ir.Value(name=f"{self._prefix}{name}_{len(self._tape.nodes)}")
        return self._tape.op(name, inputs, domain=DOMAIN, output=output)

    def several(
        self, op_type: str, count: int, *inputs: ir.Value | Literal, **attributes: Attribute
    ) -> Sequence[ir.Value]:
        """A node with `count` outputs."""
        values = [x if isinstance(x, ir.Value) else self.constant(x) for x in inputs]
        name = f"{self._prefix}{op_type}_{len(self._tape.nodes)}"
        outputs = [ir.Value(name=f"{name}_{i}") for i in range(count)]
        return self._tape.op_multi_out(op_type, values, attributes, outputs=outputs)

    def foreign(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute],
        shapes: Sequence[Sequence[int]] = ((),),
    ) -> Sequence[ir.Value]:
        """A node of ONNX Runtime's own domain, with float32 outputs of these shapes."""
        name = f"{self._prefix}{op_type}_{len(self._tape.nodes)}"
        outputs = [
            ir.Value(
                name=f"{name}_{i}", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape)
            )
            for i, shape in enumerate(shapes)
        ]
        return self._tape.op_multi_out(
            op_type, inputs, attributes, domain=MICROSOFT, outputs=outputs
        )

    def constant(self, literal: Literal) -> ir.Value:
        """An int or float is a scalar of int64 or float32, a tuple a vector of them."""
        items = literal if isinstance(literal, tuple) else (literal,)
        kind = "value_float" if any(isinstance(x, float) for x in items) else "value_int"
        kind += "s" if isinstance(literal, tuple) else ""
        if (kind, literal) not in self._constants:
            self._constants[kind, literal] = self("Constant", **{kind: literal})
        return self._constants[kind, literal]

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
