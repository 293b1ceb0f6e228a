"""What float16 wants written in another form than float32."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder

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
    many times a small value. exp of 11 is the largest whole power in float16."""
    for node in list(model.graph):
        if node.op_type != "Sigmoid" or node.inputs[0] is None:
            continue
        op = Recorder(prefix=f"{node.name}_sigmoid_")
        power = op("Exp", op("Min", op("Neg", node.inputs[0]), 11.0))
        replace_node(model.graph, node, op, op("Reciprocal", op("Add", power, 1.0)))


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
