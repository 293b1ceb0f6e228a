"""A static graph goes in; the same graph computing in one float type comes out, weights, states and
all. Integers, booleans and int8 caches stay as they are, and logits are float32."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.export.graph import LOGITS, Graph
from edgewright.export.static.weights import FLOATS, WeightConverter

# The type a conversion is to: an attribute, or the second input's.
_CONVERSIONS = ("Cast", "CastLike")


def compute_in(graph: Graph, dtype: ir.DataType, weights: WeightConverter) -> None:
    """Requires that every value's type is known. Ensures: no float type but `dtype`, except that of
    logits and of states that are narrower, and no conversion that changes nothing."""
    _Conversion(graph.model.graph, dtype, weights).run()
    model = graph.model.graph
    given = {value.name: value for value in model.outputs}
    types = {spec.output_name: ir.DataType[_ONNX_NAMES[spec.dtype]] for spec in graph.layout}
    for name, wanted in {LOGITS: ir.DataType.FLOAT, **types}.items():
        value = given[name]
        if value.dtype != wanted:
            _cast_output(model, value, wanted)


_ONNX_NAMES = {"float32": "FLOAT", "float16": "FLOAT16", "int8": "INT8"}


class _Conversion:
    def __init__(self, graph: ir.Graph, dtype: ir.DataType, weights: WeightConverter) -> None:
        self._graph = graph
        self._dtype = dtype
        self._weights = weights
        self._made: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for node in list(self._graph):
            if node.op_type in _CONVERSIONS:
                self._convert(node)
                continue
            for place, value in enumerate(node.inputs):
                if value is not None and value.dtype in FLOATS and value.dtype != self._dtype:
                    node.replace_input_with(place, self._as_wanted(value, node))
            for value in node.outputs:
                if value.dtype in FLOATS:
                    value.type = ir.TensorType(self._dtype)

    def _convert(self, node: ir.Node) -> None:
        """To a float type: to the one computed in. What then changes nothing goes."""
        (output,), value = node.outputs, node.inputs[0]
        assert value is not None and output.dtype is not None
        wanted = self._dtype if output.dtype in FLOATS else output.dtype
        if value.is_initializer() and value.dtype in FLOATS and wanted == self._dtype:
            value = self._as_wanted(value, node)
        output.type = ir.TensorType(wanted)
        if value.dtype == wanted and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, value)
            self._graph.remove(node, safe=True)
            return
        cast = ir.Node("", "Cast", [value], [_to(wanted)], name=node.name)
        self._graph.insert_before(node, cast)
        _take_over(output, cast.outputs[0])
        self._graph.remove(node, safe=True)

    def _as_wanted(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value.dtype == self._dtype:
            return value
        if value not in self._made:
            self._made[value] = (
                self._initializer(value) if value.is_initializer() else self._cast(value, reader)
            )
        return self._made[value]

    def _initializer(self, value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        tensor = self._weights.tensor(value.const_value, self._dtype)
        made = ir.Value(
            name=tensor.name, type=ir.TensorType(self._dtype), shape=value.shape, const_value=tensor
        )
        self._graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        cast = ir.Node("", "Cast", [value], [_to(self._dtype)], name=f"{value.name}_cast")
        made = cast.outputs[0]
        made.name, made.shape = f"{value.name}_cast", value.shape
        made.type = ir.TensorType(self._dtype)
        self._graph.insert_before(reader, cast)
        return made


def _cast_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    cast = ir.Node("", "Cast", [value], [_to(dtype)], name=f"{value.name}_cast")
    writer = value.producer()
    assert writer is not None
    graph.insert_after(writer, cast)
    made = cast.outputs[0]
    made.shape, made.type = value.shape, ir.TensorType(dtype)
    graph.outputs[list(graph.outputs).index(value)] = made
    made.name, value.name = value.name, f"{value.name}.computed"


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, f"{old.name}_replaced"


def _to(dtype: ir.DataType) -> ir.Attr:
    return ir.Attr("to", ir.AttributeType.INT, int(dtype))
