"""Our ops become their static lowerings, and the graph's named dimensions numbers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as standard

from edgewright.artifacts.states import StateSpec
from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.static_node import StaticNode
from edgewright.export.graph import Graph
from edgewright.export.static.marks import mark
from edgewright.export.static.shapes import StaticShapes
from edgewright.export.static.weights import FLOATS


def call_sizes(shapes: StaticShapes, seq: int) -> dict[str, int]:
    return {"batch": 1, "seq": seq, "wanted": 1, "capacity": shapes.capacity}


def set_sizes(graph: Graph, shapes: StaticShapes, seq: int) -> None:
    """Requires the canonical graph. Ensures: inputs and outputs of known sizes; what torch said of
    the values between them is forgotten but for sizes that are numbers."""
    sizes = call_sizes(shapes, seq)
    model = graph.model.graph
    for value in (*model.inputs, *model.outputs):
        value.shape = resolved(value.shape, sizes)
    boundary = {value.name: value for value in (*model.inputs, *model.outputs)}
    for spec in graph.layout:
        boundary[spec.output_name].shape = ir.Shape(_given(spec, sizes))


def _given(spec: StateSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The sizes of what the graph gives for a state: as a delta, the new tokens alone."""
    kept = dict(sizes)
    if spec.update == "delta":
        kept["capacity"] = sizes["seq"]
    return spec.resolve(kept["batch"], kept["capacity"])


def resolved(shape: ir.Shape | None, sizes: Mapping[str, int]) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape(
        [size if isinstance(size, int) else sizes.get(str(size.value), size) for size in shape]
    )


def lower_ops(graph: Graph, shapes: StaticShapes, seq: int) -> None:
    """Ensures: no node and no function of ours."""
    model = graph.model
    model.functions.clear()
    chosen = shapes.quantise
    if chosen is not None:
        mark(model.graph, chosen.ops)
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        found = StaticNode(node, 1, seq, shapes.capacity, shapes.update)
        function = _lowering(shapes, found)
        if chosen is not None and node.op_type not in chosen.apart:
            mark(function, chosen.ops)
        _call(model, node, function)
    standard.InlinePass()(model)
    model.opset_imports.pop(DOMAIN, None)
    for node in model.graph:
        model.opset_imports.setdefault(node.domain, 1)


def _lowering(shapes: StaticShapes, found: StaticNode) -> ir.Function:
    op_type = found.node.op_type
    if op_type in shapes.lowerings and (own := shapes.lowerings[op_type](found)) is not None:
        return own
    module = import_module(f"edgewright.custom_ops.{OPS[op_type].function}.lower")
    function: ir.Function = module.lower_node(found)
    return function


def _call(model: ir.Model, node: ir.Node, function: ir.Function) -> None:
    """Every node has a function of its own, as its sizes may be its own."""
    function.overload = str(len(model.functions))
    for place, value in enumerate(node.inputs):
        if value is not None and value.is_initializer() and value.dtype in FLOATS:
            node.replace_input_with(place, _as_float32(model.graph, node, value))
    model.functions[function.identifier()] = function
    call = ir.Node(
        function.domain,
        function.name,
        node.inputs,
        overload=function.overload,
        num_outputs=len(node.outputs),
        name=node.name,
    )
    model.graph.insert_before(node, call)
    for old, new, made in zip(node.outputs, call.outputs, function.outputs, strict=True):
        new.type, new.shape = old.type, made.shape or old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, f"{old.name}_replaced"
    model.graph.remove(node, safe=True)


def _as_float32(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    """Our ops read weights of any float type; the standard ones want that of what they multiply."""
    if value.dtype == ir.DataType.FLOAT:
        return value
    cast = ir.Node("", "Cast", [value], [ir.Attr("to", ir.AttributeType.INT, ir.DataType.FLOAT)])
    (made,) = cast.outputs
    cast.name = made.name = f"{node.name}_{value.name}_float32"
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    graph.insert_before(node, cast)
    return made


def infer_shapes(model: ir.Model) -> None:
    """Anew, from the sizes of inputs, initializers and outputs, and from what is known of the
    outputs of ops that the inference has not heard of."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.shape = ir.Shape(value.const_value.shape.numpy())
    for node in model.graph:
        for value in node.outputs if onnx.defs.has(node.op_type, node.domain) else ():
            if not value.is_graph_output():
                value.shape = None
    standard.ShapeInferencePass()(model)
