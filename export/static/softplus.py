"""log(1 + exp(x)) is traced in a form that keeps small steps in float32. In float16 what that form
divides by is 0: there the standard operator takes its place."""

from __future__ import annotations

import onnx_ir as ir


def restore_softplus(model: ir.Model) -> None:
    """Ensures: no node of `export/trace.py`'s form is read."""
    for node in list(model.graph):
        x = _argument(node)
        if x is None:
            continue
        softplus = ir.Node("", "Softplus", [x], name=f"{node.name}_softplus")
        model.graph.insert_before(node, softplus)
        (old,), (new,) = node.outputs, softplus.outputs
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)
        new.name, old.name = old.name, f"{old.name}_replaced"


def _argument(node: ir.Node) -> ir.Value | None:
    """The x of relu(x) + log(w) * (u / max(w - 1, least)), with u = exp(-|x|) and w = u + 1."""
    relu, product = _operands(node, "Add", "Relu", "Mul")
    log, quotient = _operands(product, "Mul", "Log", "Div")
    if relu is None or log is None or quotient is None:
        return None
    exp, _ = (None, None) if quotient.inputs[0] is None else (quotient.inputs[0].producer(), None)
    negated = _made_by(exp, "Neg")
    absolute = _made_by(negated, "Abs")
    if exp is None or exp.op_type != "Exp" or absolute is None:
        return None
    return relu.inputs[0] if absolute.inputs[0] is relu.inputs[0] else None


def _operands(
    node: ir.Node | None, op_type: str, first: str, second: str
) -> tuple[ir.Node | None, ir.Node | None]:
    if node is None or node.op_type != op_type or len(node.inputs) != 2:
        return None, None
    found = {
        value.producer().op_type: value.producer()
        for value in node.inputs
        if value is not None and value.producer() is not None
    }
    return found.get(first), found.get(second)


def _made_by(node: ir.Node | None, op_type: str) -> ir.Node | None:
    if node is None or node.inputs[0] is None:
        return None
    maker = node.inputs[0].producer()
    return maker if maker is not None and maker.op_type == op_type else None
