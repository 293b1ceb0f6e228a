"""A static graph goes in; the same graph computing in one float type comes out, weights, states and
all. Integers, booleans and int8 caches stay as they are, and logits are float32."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from edgewright.export.graph import LOGITS, Graph
from edgewright.export.static.marks import is_marked
from edgewright.export.static.weights import FLOATS, WeightConverter

# The type a conversion is to: an attribute, or the second input's.
_CONVERSIONS = ("Cast", "CastLike")


_POSITIONS = ("start", "length")
_IDS = ("input_ids", "logit_index")
_STATE_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
}


def compute_in(
    graph: Graph, dtype: ir.DataType, weights: WeightConverter, wide: Set[str] = frozenset()
) -> None:
    """Requires that every value's type is known. Ensures: no float type but `dtype`, except that of
    logits, of states that are narrower, of what is made of positions alone, and of what marked
    nodes and the operators named `wide` compute; and no conversion that changes nothing."""
    model = graph.model.graph
    taken = {value.name: value for value in model.inputs}
    for spec in graph.layout:
        taken[spec.input_name].type = ir.TensorType(_STATE_TYPES[spec.dtype])
    _Conversion(model, dtype, weights, wide).run()
    given = {value.name: value for value in model.outputs}
    types = {spec.output_name: _STATE_TYPES[spec.dtype] for spec in graph.layout}
    for name, wanted in {LOGITS: ir.DataType.FLOAT, **types}.items():
        if given[name].dtype != wanted:
            _cast_output(model, given[name], wanted)


class _Conversion:
    def __init__(
        self, graph: ir.Graph, dtype: ir.DataType, weights: WeightConverter, wide: Set[str]
    ) -> None:
        self._graph = graph
        self._wide = wide
        self._dtype = dtype
        self._weights = weights
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._positional = positional_values(graph)

    def run(self) -> None:
        for node in list(self._graph):
            wanted = self._wanted_of(node)
            if node.op_type in _CONVERSIONS:
                self._convert(node, wanted)
                continue
            for place, value in enumerate(node.inputs):
                if value is not None and value.dtype in FLOATS and value.dtype != wanted:
                    node.replace_input_with(place, self._as(value, wanted, node))
            for value in node.outputs:
                if value.dtype in FLOATS:
                    value.type = ir.TensorType(wanted)

    def _wanted_of(self, node: ir.Node) -> ir.DataType:
        if is_marked(node) or _is_positional(node, self._positional):
            return ir.DataType.FLOAT
        return ir.DataType.FLOAT if node.op_type in self._wide else self._dtype

    def _convert(self, node: ir.Node, wanted: ir.DataType) -> None:
        """To a float type: to the one computed in. What then changes nothing goes."""
        (output,), value = node.outputs, node.inputs[0]
        assert value is not None and output.dtype is not None
        dtype = wanted if output.dtype in FLOATS else output.dtype
        readers = [use.node for use in output.uses()]
        if output.dtype == ir.DataType.FLOAT and _is_blob(value) and all(map(is_marked, readers)):
            return  # it is quantised from the values that the checkpoint has
        if value.is_initializer() and value.dtype in FLOATS and dtype in FLOATS:
            value = self._as(value, dtype, node)
        if value.dtype == dtype and not output.is_graph_output():
            ir.convenience.replace_all_uses_with(output, value)
        else:
            cast = ir.Node("", "Cast", [value], [_to(dtype)], name=node.name)
            self._graph.insert_before(node, cast)
            (made,) = cast.outputs
            made.type, made.shape = ir.TensorType(dtype), output.shape
            ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
            made.name, output.name = output.name, f"{output.name}_replaced"
            if output in self._positional:
                self._positional.add(made)
        self._graph.remove(node, safe=True)

    def _as(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._made:
            made = (
                self._initializer(value, dtype)
                if value.is_initializer()
                and not (is_marked(reader) and _is_blob(value))
                and not self._widens(value, dtype)
                else self._cast(value, dtype, reader)
            )
            self._made[value, dtype] = made
        return self._made[value, dtype]

    def _widens(self, value: ir.Value, dtype: ir.DataType) -> bool:
        """A large weight that is stored in the graph's own type is converted when it is read."""
        return _is_blob(value) and value.dtype == self._dtype and dtype == ir.DataType.FLOAT

    def _initializer(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        tensor = self._weights.tensor(value.const_value, dtype)
        made = ir.Value(
            name=tensor.name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor
        )
        self._graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType, reader: ir.Node) -> ir.Value:
        name = f"{value.name}_{dtype.short_name()}"
        cast = ir.Node("", "Cast", [value], [_to(dtype)], name=name)
        made = cast.outputs[0]
        made.name, made.shape, made.type = name, value.shape, ir.TensorType(dtype)
        self._graph.insert_before(reader, cast)
        return made


def _is_blob(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.const_value, ir.ExternalTensor)


def positional_values(graph: ir.Graph) -> set[ir.Value]:
    """What is made of positions alone: float16 tells those apart up to 2048 alone. Token ids that
    are floats are like them, until they choose rows of a table."""
    found = {
        value
        for value in graph.inputs
        if value.name in _POSITIONS or (value.name in _IDS and value.dtype in FLOATS)
    }
    for node in graph:
        if _is_positional(node, found):
            found.update(node.outputs)
    return found


def _is_positional(node: ir.Node, positional: set[ir.Value]) -> bool:
    values = [v for v in node.inputs if v is not None and not v.is_initializer()]
    rows = node.op_type == "MatMul" and any(_is_blob(value) for value in node.inputs)
    return bool(values) and positional.issuperset(values) and not rows


def _cast_output(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    cast = ir.Node("", "Cast", [value], [_to(dtype)], name=f"{value.name}_cast")
    writer = value.producer()
    assert writer is not None
    graph.insert_after(writer, cast)
    made = cast.outputs[0]
    made.shape, made.type = value.shape, ir.TensorType(dtype)
    graph.outputs[list(graph.outputs).index(value)] = made
    made.name, value.name = value.name, f"{value.name}.computed"


def _to(dtype: ir.DataType) -> ir.Attr:
    return ir.Attr("to", ir.AttributeType.INT, int(dtype))
