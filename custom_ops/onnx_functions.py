"""An op's name goes in; its function body in standard ops comes out, ready for an onnx_ir model."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

import onnx_ir as ir

from edgewright.custom_ops import DOMAIN, OPS, VERSION


def function_for(name: str, overload: str = "") -> ir.Function:
    """A fresh copy each time: a model owns the functions in it."""
    if name in OPS:
        folder = f"edgewright.custom_ops.{OPS[name].function}"
        module = import_module(f"{folder}.{overload}_body" if overload else f"{folder}.body")
    else:  # what bodies share
        module = import_module("edgewright.custom_ops.shared_bodies")
    function = ir.serde.deserialize_function(getattr(module, name).to_function_proto())
    function.overload = overload
    if name not in OPS:
        _keep_literals(function)
    if _called(function.all_nodes()):
        function.opset_imports[DOMAIN] = VERSION
    return function


def attach_functions(model: ir.Model) -> bool:
    """Give each of our ops in `model` its body, so that it runs without the library."""
    missing = _called(model.graph.all_nodes()) - model.functions.keys()
    changed = bool(missing)
    while missing:
        _, name, overload = identifier = min(missing)
        function = function_for(name, overload)
        model.functions[identifier] = function
        model.opset_imports.setdefault(DOMAIN, VERSION)
        missing |= _called(function.all_nodes()) - model.functions.keys()
        missing.discard(identifier)
    return changed


def _keep_literals(function: ir.Function) -> None:
    """onnxscript casts each literal to the type of what it meets. The shared bodies write theirs in
    that type, and ONNX Runtime would spend a function call on each cast."""
    for node in list(function.all_nodes()):
        if node.op_type != "CastLike" or node.inputs[0] is None:
            continue
        literal = node.inputs[0].producer()
        if literal is not None and literal.op_type == "Constant":
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            assert node.graph is not None
            node.graph.remove(node, safe=True)


def _called(nodes: Iterable[ir.Node]) -> set[tuple[str, str, str]]:
    return {node.op_identifier() for node in nodes if node.domain == DOMAIN}
