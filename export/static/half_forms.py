"""What float16 wants written in another form than float32."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder
from edgewright.export.static.marks import is_marked, mark_like

# exp of it is 0 in float16. Far below, where float32 has values yet, Qualcomm's HTP gives NaN.
_LEAST_EXPONENT = -20.0


def bound_exponents(model: ir.Model) -> None:
    """Requires float32 and sizes that are numbers. Ensures: no exponential is taken of less than
    float16 tells from nothing."""
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "Exp" else None
        if value is None or value.shape is None:
            continue
        sizes = tuple(int(size) for size in value.shape.numpy())
        op = Recorder(prefix=f"{node.name}_bounded_")
        # Flat, because a maximum is not taken of five dimensions everywhere.
        flat = op("Reshape", value, (1, -1, sizes[-1] if sizes else 1))
        bounded = op("Reshape", op("Max", flat, _LEAST_EXPONENT), sizes)
        model.graph.insert_before(node, op.nodes)
        node.replace_input_with(0, bounded)


def write_out_softplus(model: ir.Model) -> None:
    """log(1 + exp(x)) is traced in a form that keeps small steps in float32 (export/trace.py). In
    float16 what that form divides by is 0, and Qualcomm's HTP errs by a tenth in its own operator.
    Here relu(x) + log(1 + u), u = exp(-|x|), the logarithm as a series in u / (2 + u)."""
    for node in list(model.graph):
        x = _argument(node)
        if x is None:
            continue
        op = Recorder(prefix=f"{node.name}_softplus_")
        u = op("Exp", op("Neg", op("Abs", x)))
        z = op("Div", u, op("Add", u, 2.0))  # at most a third: 2 artanh(z) is log(1 + u)
        square = op("Mul", z, z)
        series = op("Mul", square, 1 / 9)
        for term in (1 / 7, 1 / 5, 1 / 3):
            series = op("Mul", op("Add", series, term), square)
        log = op("Mul", op("Mul", op("Add", series, 1.0), z), 2.0)
        replace_node(model.graph, node, op, op("Add", op("Relu", x), log))


def write_out_sigmoid(model: ir.Model) -> None:
    """1 / (1 + exp(-x)), for a provider whose own operator is right to a thousandth alone, which is
    many times a small value; in integers it is right. exp of 11 is the largest whole power in
    float16."""
    for node in list(model.graph):
        if node.op_type != "Sigmoid" or node.inputs[0] is None or is_marked(node):
            continue
        op = Recorder(prefix=f"{node.name}_sigmoid_")
        power = op("Exp", op("Min", op("Neg", node.inputs[0]), 11.0))
        replace_node(model.graph, node, op, op("Reciprocal", op("Add", power, 1.0)))


def write_out_rotation(model: ir.Model) -> None:
    """RotaryEmbedding as products and sums of the halves of each head, for a provider that takes
    it in integers and computes it in fewer bits than they have."""
    for node in list(model.graph):
        if node.op_type != "RotaryEmbedding" or not is_marked(node):
            continue
        op = Recorder(prefix=f"{node.name}_rotation_")
        new = _rotated(op, node)
        if new is not None:
            mark_like(op.nodes, node)
            replace_node(model.graph, node, op, new)


def _rotated(op: Recorder, node: ir.Node) -> ir.Value | None:
    """None for a form that no model of ours has: interleaved, or with positions to look up."""
    x, cos, sin, *rest = node.inputs
    numbers = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    if rest or numbers.get("interleaved", 0) or x is None or cos is None or sin is None:
        return None
    assert x.shape is not None
    sizes = tuple(int(size) for size in x.shape.numpy())
    by_head: tuple[int, ...]
    turns: tuple[int, ...]
    if len(sizes) == 3:  # [B, S, heads * D]
        heads = numbers["num_heads"]
        by_head = (*sizes[:2], heads, sizes[2] // heads)
        turns = (*sizes[:2], 1, -1)
    else:  # [B, heads, S, D]
        by_head, turns = sizes, (sizes[0], 1, sizes[2], -1)
    width = numbers.get("rotary_embedding_dim", 0) or by_head[-1]
    parts = (width // 2, width // 2, by_head[-1] - width)[: 2 if width == by_head[-1] else 3]
    split = op.several("Split", len(parts), op("Reshape", x, by_head), parts, axis=-1)
    first, second, *others = split
    cos, sin = op("Reshape", cos, turns), op("Reshape", sin, turns)
    real = op("Sub", op("Mul", first, cos), op("Mul", second, sin))
    turned = op("Add", op("Mul", first, sin), op("Mul", second, cos))
    return op("Reshape", op("Concat", real, turned, *others, axis=-1), sizes)


def replace_node(graph: ir.Graph, node: ir.Node, op: Recorder, new: ir.Value) -> None:
    """The nodes recorded, in the place of one whose output `new` is."""
    old = node.outputs[0]
    graph.insert_before(node, op.nodes)
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    new.name, old.name = old.name, f"{old.name}_replaced"
    graph.remove(node, safe=True)


def _argument(node: ir.Node) -> ir.Value | None:
    """The x of relu(x) + log(w) * (u / max(w - 1, least)), with u = exp(-|x|) and w = u + 1."""
    ends = _operands(node, "Add")
    parts = _operands(ends.get("Mul"), "Mul")
    relu, quotient = ends.get("Relu"), parts.get("Div")
    if relu is None or quotient is None or "Log" not in parts:
        return None
    negated = _maker(_maker(quotient, "Exp"), "Neg")
    absolute = _maker(negated, "Abs")
    if absolute is None or absolute.inputs[0] is not relu.inputs[0]:
        return None
    return relu.inputs[0]


def _operands(node: ir.Node | None, op_type: str) -> dict[str, ir.Node]:
    """What made the operands of a node of that type, by the makers' types."""
    if node is None or node.op_type != op_type:
        return {}
    makers = (value.producer() for value in node.inputs if value is not None)
    return {maker.op_type: maker for maker in makers if maker is not None}


def _maker(node: ir.Node | None, op_type: str) -> ir.Node | None:
    if node is None or node.inputs[0] is None:
        return None
    maker = node.inputs[0].producer()
    return maker if maker is not None and maker.op_type == op_type else None
