"""What graphics processors want written in another form than the processor: integers of 32 bits,
choices for extremes, and no boolean moved about."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder
from edgewright.export.static.half_forms import replace_node

# Where an operator reads sizes or axes, by the place of its input: these stay int64, on the host.
_SIZES = {
    "Reshape": {1},
    "Expand": {1},
    "Squeeze": {1},
    "Unsqueeze": {1},
    "Split": {1},
    "Tile": {1},
    "TopK": {1},
    "ReduceSum": {1},
    "ReduceMax": {1},
    "ReduceMean": {1},
    "Pad": {1, 3},
    "Slice": {1, 2, 3, 4},
}
_EXTREMES = {"Min": "Less", "Max": "Greater"}
_MOVES = frozenset({"Concat", "Expand", "Reshape", "Slice", "Split", "Squeeze", "Transpose"})


def narrow_integers(model: ir.Model) -> None:
    """Requires that every value's type is known. Ensures: int32 for int64, inputs of the graph
    included, but for sizes, axes and the places that TopK finds."""
    made: dict[ir.Value, ir.Value] = {}
    for taken in model.graph.inputs:
        _set_narrow(taken)
    for node in list(model.graph):
        sizes = _SIZES.get(node.op_type, set())
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.INT64 or place in sizes:
                continue
            if value.is_initializer():
                if value not in made:
                    made[value] = _narrow_initializer(model.graph, value)
                node.replace_input_with(place, made[value])
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.INT64:
            node.attributes["to"] = _to(ir.DataType.INT32)
        if node.op_type != "TopK":
            for given in node.outputs:
                _set_narrow(given)


def _set_narrow(value: ir.Value) -> None:
    if value.dtype == ir.DataType.INT64:
        value.type = ir.TensorType(ir.DataType.INT32)


def _narrow_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    held = value.const_value
    assert held is not None
    if isinstance(held, ir.ExternalTensor):
        return value  # places to gather from, which are taken in either type
    limits = np.iinfo(np.int32)
    narrow = np.clip(held.numpy(), limits.min, limits.max).astype(np.int32)
    tensor = ir.Tensor(narrow, name=f"{value.name}.i32")
    made = ir.Value(
        name=tensor.name, type=ir.TensorType(tensor.dtype), shape=value.shape, const_value=tensor
    )
    graph.register_initializer(made)
    return made


def choose_extremes(model: ir.Model) -> None:
    """Ensures: no Min and no Max, but the one or the other of two values."""
    for node in list(model.graph):
        compare = _EXTREMES.get(node.op_type)
        if compare is None:
            continue
        op = Recorder(prefix=f"{node.name}_chosen_")
        found, *others = (value for value in node.inputs if value is not None)
        for other in others:
            found = op("Where", op(compare, found, other), found, other)
        replace_node(model.graph, node, op, found)


def move_no_booleans(model: ir.Model) -> None:
    """Requires known types and shapes. Ensures: booleans are moved about as int32, but where a size
    of one is put in."""
    for node in list(model.graph):
        if node.op_type not in _MOVES or node.outputs[0].dtype != ir.DataType.BOOL:
            continue
        op = Recorder(prefix=f"{node.name}_moved_")
        axes = _axes_put_in(node)
        value = node.inputs[0]
        assert value is not None
        if axes is not None:
            replace_node(model.graph, node, op, op("Unsqueeze", value, axes))
            continue
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.BOOL:
                node.replace_input_with(place, op("Cast", value, to=int(ir.DataType.INT32)))
        model.graph.insert_before(node, op.nodes)
        for old in list(node.outputs):
            _cast_back(model.graph, node, old)


def multiply_masks(model: ir.Model) -> None:
    """Ensures: no Where with a zero to its right, but a product with ones and zeros. ONNX Runtime
    moves transpositions past a Where, and that of the mask would be of booleans."""
    for node in list(model.graph):
        zero = node.inputs[2].const_value if node.op_type == "Where" and node.inputs[2] else None
        if zero is None or zero.dtype != ir.DataType.FLOAT or zero.size != 1:
            continue
        if float(zero.numpy().reshape(())) != 0.0:
            continue
        condition, value = node.inputs[:2]
        assert condition is not None and value is not None
        op = Recorder(prefix=f"{node.name}_masked_")
        mask = op("Cast", condition, to=int(ir.DataType.FLOAT))
        replace_node(model.graph, node, op, op("Mul", value, mask))


def norm_in_opset_21(model: ir.Model) -> None:
    """Requires known types and shapes. Ensures: opset 21, RMSNormalization under the name that ONNX
    Runtime has for it there, RotaryEmbedding written out."""
    for node in list(model.graph):
        if node.op_type == "RMSNormalization":
            node.op_type = "SimplifiedLayerNormalization"
        elif node.op_type == "RotaryEmbedding":
            op = Recorder(prefix=f"{node.name}_turned_")
            replace_node(model.graph, node, op, _turned(op, node))
    model.opset_imports[""] = 21


def _turned(op: Recorder, node: ir.Node) -> ir.Value:
    """Pairs of x, side by side or half a head apart, each turned by its angle."""
    x, *tables = node.inputs
    assert x is not None and x.shape is not None and len(tables) == 2
    attributes = node.attributes
    sizes = tuple(int(size) for size in x.shape.numpy())
    by_head: tuple[int, ...]
    if len(sizes) == 3:  # [B, S, H*D]
        heads = attributes["num_heads"].as_int()
        by_head = (*sizes[:2], heads, sizes[2] // heads)
        x, axis = op("Reshape", x, by_head), 2
    else:  # [B, H, S, D]
        by_head, axis = sizes, 1
    cos, sin = (op("Unsqueeze", table, (axis,)) for table in tables if table is not None)
    width = by_head[-1]
    turning = (
        attributes["rotary_embedding_dim"].as_int() if "rotary_embedding_dim" in attributes else 0
    )
    turning = turning or width
    rest: list[ir.Value] = []
    if turning < width:
        x, *rest = op.several("Split", 2, x, (turning, width - turning), axis=3)
    apart = bool(attributes["interleaved"].as_int()) if "interleaved" in attributes else False
    if apart:
        paired = op("Reshape", x, (*by_head[:3], turning // 2, 2))
        x, y = (
            op("Squeeze", half, (4,)) for half in op.several("Split", 2, paired, (1, 1), axis=4)
        )
    else:
        x, y = op.several("Split", 2, x, (turning // 2, turning // 2), axis=3)
    turned = [
        op("Sub", op("Mul", x, cos), op("Mul", y, sin)),
        op("Add", op("Mul", y, cos), op("Mul", x, sin)),
    ]
    if apart:
        both = op("Concat", *(op("Unsqueeze", half, (4,)) for half in turned), axis=4)
        turned = [op("Reshape", both, (*by_head[:3], turning))]
    parts = [*turned, *rest]
    found = parts[0] if len(parts) == 1 else op("Concat", *parts, axis=3)
    return op("Reshape", found, sizes)


def _axes_put_in(node: ir.Node) -> tuple[int, ...] | None:
    """Of a Reshape that puts in axes of one and changes nothing else."""
    value, result = node.inputs[0], node.outputs[0]
    if node.op_type != "Reshape" or value is None or value.shape is None or result.shape is None:
        return None
    left, axes = list(value.shape.numpy()), []
    for axis, size in enumerate(result.shape.numpy()):
        if left and left[0] == size:
            left.pop(0)
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return tuple(axes) if axes and not left else None


def _cast_back(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    cast = ir.Node("", "Cast", [value], [_to(ir.DataType.BOOL)], name=f"{value.name}_back")
    (made,) = cast.outputs
    made.name, made.shape = f"{value.name}_back", value.shape
    made.type, value.type = ir.TensorType(ir.DataType.BOOL), ir.TensorType(ir.DataType.INT32)
    ir.convenience.replace_all_uses_with(value, made)
    cast.replace_input_with(0, value)
    graph.insert_after(node, cast)


def _to(dtype: ir.DataType) -> ir.Attr:
    return ir.Attr("to", ir.AttributeType.INT, int(dtype))
