"""An op's name goes in; its function body in standard ops, ready for an onnx_ir model, comes out."""

from __future__ import annotations

from importlib import import_module

import onnx_ir as ir

from edgewright.custom_ops import DOMAIN, OPS


def function_for(name: str) -> ir.Function:
    """A fresh copy each time: a model owns the functions in it."""
    spec = OPS[name]
    module = import_module(f"edgewright.custom_ops.{spec.function}.body")
    function = ir.serde.deserialize_function(getattr(module, name).to_function_proto())
    for attribute in spec.attributes:
        # onnxscript drops the attribute that no node reads, which a caller may still set.
        if attribute.name not in function.attributes:
            function.attributes[attribute.name] = ir.Attr(
                attribute.name, ir.AttributeType[attribute.type.upper()], attribute.default
            )
    return function


def attach_functions(model: ir.Model) -> bool:
    """Give each of our ops in `model` its body, so that it runs without the library."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    missing = [name for name in sorted(used) if (DOMAIN, name, "") not in model.functions]
    for name in missing:
        function = function_for(name)
        model.functions[function.identifier()] = function
        model.opset_imports.setdefault(DOMAIN, 1)
    return bool(missing)
