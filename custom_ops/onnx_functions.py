"""An op's name goes in; its function body in standard ops comes out, ready for an onnx_ir model."""

from __future__ import annotations

from importlib import import_module

import onnx_ir as ir

from edgewright.custom_ops import DOMAIN, OPS


def function_for(name: str) -> ir.Function:
    """A fresh copy each time: a model owns the functions in it."""
    module = import_module(f"edgewright.custom_ops.{OPS[name].function}.body")
    return ir.serde.deserialize_function(getattr(module, name).to_function_proto())


def attach_functions(model: ir.Model) -> bool:
    """Give each of our ops in `model` its body, so that it runs without the library."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    missing = [name for name in sorted(used) if (DOMAIN, name, "") not in model.functions]
    for name in missing:
        function = function_for(name)
        model.functions[function.identifier()] = function
        model.opset_imports.setdefault(DOMAIN, 1)
    return bool(missing)
