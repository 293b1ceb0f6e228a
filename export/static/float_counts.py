"""Integers and booleans become float32, for a provider whose arithmetic is of floats alone: token
ids and positions come in as floats, which tell them apart up to 16 million, and a comparison is 1
or 0."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder
from edgewright.export.static.half_forms import replace_node
from edgewright.export.static.weights import FLOATS

_COUNTS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
# What gives of any values the same values, or sums of them: of all its inputs, or of the first.
_OF_ALL = frozenset({"Add", "Concat", "Max", "Min", "Mul", "Sub"})
_OF_FIRST = frozenset(
    {"Expand", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)


def count_in_floats(model: ir.Model) -> None:
    """Requires that every value's type and sizes are known. Ensures: int64 and booleans nowhere but
    as sizes, axes and the conditions of Where; but a node that has no form in floats keeps them,
    between conversions, and is for the provider to refuse."""
    _Counts(model.graph).run()


class _Counts:
    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._was: dict[ir.Value, ir.DataType] = {}
        self._floats: dict[ir.Value, ir.Value] = {}
        self._conditions: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for value in self._graph.inputs:
            self._retype(value)
        for node in list(self._graph):
            self._visit(node)

    def _retype(self, value: ir.Value) -> None:
        if value.dtype in _COUNTS:
            self._was[value] = value.dtype
            value.type = ir.TensorType(ir.DataType.FLOAT)

    def _visit(self, node: ir.Node) -> None:
        if not any(value is not None and self._is_count(value) for value in node.inputs):
            self._keep(node)
        elif node.op_type in _OF_ALL or node.op_type in _OF_FIRST:
            self._carry(node)
        elif node.op_type == "Where":
            self._choose(node)
        else:
            op = Recorder(prefix=f"{node.name}_floats_")
            new = self._form(op, node)
            if new is None:
                self._keep(node)
            else:
                replace_node(self._graph, node, op, new)
                if new.dtype in _COUNTS:
                    self._retype(new)

    def _is_count(self, value: ir.Value) -> bool:
        return value in self._was or value.dtype in _COUNTS

    def _carry(self, node: ir.Node) -> None:
        for place in range(len(node.inputs) if node.op_type in _OF_ALL else 1):
            value = node.inputs[place]
            assert value is not None
            node.replace_input_with(place, self._float(value))
        for value in node.outputs:
            self._retype(value)

    def _choose(self, node: ir.Node) -> None:
        condition, *branches = node.inputs
        assert condition is not None
        if condition in self._was:
            node.replace_input_with(0, self._condition(condition, node))
        for place, value in enumerate(branches, 1):
            assert value is not None
            node.replace_input_with(place, self._float(value))
        for value in node.outputs:
            self._retype(value)

    def _form(self, op: Recorder, node: ir.Node) -> ir.Value | None:
        match node.op_type:
            case "Cast":
                return self._converted(op, node)
            case "Gather":
                return self._rows(op, node)
            case "GatherElements":
                return self._picked(op, node)
        values = [value for value in node.inputs if value is not None]
        if node.op_type not in _FORMS or not all(self._is_count(value) for value in values):
            return None
        return _FORMS[node.op_type](op, *map(self._float, values))

    def _converted(self, op: Recorder, node: ir.Node) -> ir.Value | None:
        value, wanted = node.inputs[0], node.outputs[0].dtype
        if value not in self._was:
            return None
        if wanted == ir.DataType.BOOL and self._was[value] != ir.DataType.BOOL:
            return op("Clip", op("Mul", value, value), 0.0, 1.0)
        return op("Identity", value)

    def _rows(self, op: Recorder, node: ir.Node) -> ir.Value | None:
        """Of a table [n, width], as the product with ones and zeros: [m, n] and [n, width]."""
        table, index = node.inputs
        if table is None or index not in self._was or _axis(node) != 0:
            return None
        sizes, (rows, *width) = _sizes(index), _sizes(table)
        if len(width) != 1 or table.dtype not in FLOATS:
            return None
        ones = self._ones(op, index, math.prod(sizes), rows)
        found = op("MatMul", ones, op("Cast", table, to=int(ir.DataType.FLOAT)))
        return op("Cast", op("Reshape", found, (*sizes, *width)), to=int(table.dtype))

    def _picked(self, op: Recorder, node: ir.Node) -> ir.Value | None:
        """Along one axis, the same for all others: as a product with ones and zeros, too."""
        data, index = node.inputs
        if data is None or index not in self._was or data.dtype != ir.DataType.FLOAT:
            return None
        sizes, out = _sizes(data), _sizes(node.outputs[0])
        axis = _axis(node) % len(sizes)
        maker = index.producer()
        if maker is not None and maker.op_type == "Expand" and maker.inputs[0] is not None:
            index = maker.inputs[0]
        count = out[axis]
        if math.prod(_sizes(index)) != count or [*sizes[:axis], *sizes[axis + 1 :]] != [
            *out[:axis],
            *out[axis + 1 :],
        ]:
            return None
        flat = (math.prod(sizes[:axis]), sizes[axis], math.prod(sizes[axis + 1 :]))
        ones = self._ones(op, index, count, sizes[axis])
        return op("Reshape", op("MatMul", ones, op("Reshape", data, flat)), out)

    def _ones(self, op: Recorder, index: ir.Value, count: int, size: int) -> ir.Value:
        """[count, size]: 1 where a column's place is the row's index."""
        return _equal(op, op("Reshape", index, (count, 1)), self._places(size))

    def _places(self, size: int) -> ir.Value:
        name = f"places.{size}"
        if name not in self._graph.initializers:
            self._register(ir.Tensor(np.arange(size, dtype=np.float32), name=name))
        return self._graph.initializers[name]

    def _keep(self, node: ir.Node) -> None:
        for place, value in enumerate(node.inputs):
            if value in self._was:
                node.replace_input_with(place, self._cast(value, self._was[value], node))
        for value in node.outputs:
            if value.dtype in _COUNTS and not value.is_graph_output():
                cast = _cast_node(value, ir.DataType.FLOAT)
                (made,) = cast.outputs
                ir.convenience.replace_all_uses_with(value, made)
                cast.replace_input_with(0, value)
                self._graph.insert_after(node, cast)
                self._was[made] = value.dtype

    def _float(self, value: ir.Value) -> ir.Value:
        if value in self._was or value.dtype not in _COUNTS:
            return value
        if value not in self._floats:
            assert value.const_value is not None, f"{value.name} is read before it is made"
            values = value.const_value.numpy().astype(np.float32)
            self._floats[value] = self._register(ir.Tensor(values, name=f"{value.name}.floats"))
        return self._floats[value]

    def _condition(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value not in self._conditions:
            self._conditions[value] = self._cast(value, ir.DataType.BOOL, reader)
        return self._conditions[value]

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        cast = _cast_node(value, dtype)
        self._graph.insert_before(reader, cast)
        return cast.outputs[0]

    def _register(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value


def _cast_node(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    to = ir.Attr("to", ir.AttributeType.INT, int(dtype))
    cast = ir.Node("", "Cast", [value], [to], name=f"{value.name}_to_{dtype.short_name()}")
    (made,) = cast.outputs
    made.name, made.type, made.shape = cast.name, ir.TensorType(dtype), value.shape
    return cast


def _positive(op: Recorder, whole: ir.Value) -> ir.Value:
    return op("Clip", whole, 0.0, 1.0)


def _equal(op: Recorder, a: ir.Value, b: ir.Value) -> ir.Value:
    difference = op("Sub", a, b)
    return op("Relu", op("Sub", 1.0, op("Mul", difference, difference)))


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 0


_FORMS: dict[str, Callable[..., ir.Value]] = {
    "And": lambda op, a, b: op("Mul", a, b),
    "Or": lambda op, a, b: op("Max", a, b),
    "Not": lambda op, a: op("Sub", 1.0, a),
    "Less": lambda op, a, b: _positive(op, op("Sub", b, a)),
    "Greater": lambda op, a, b: _positive(op, op("Sub", a, b)),
    "LessOrEqual": lambda op, a, b: _positive(op, op("Add", op("Sub", b, a), 1.0)),
    "GreaterOrEqual": lambda op, a, b: _positive(op, op("Add", op("Sub", a, b), 1.0)),
    "Equal": _equal,
}
