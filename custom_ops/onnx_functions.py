"""An op's name goes in; its function body in standard ops comes out, ready for an onnx_ir model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass
from onnxscript import OnnxFunction

from edgewright.custom_ops import DOMAIN, OPS, VERSION
from edgewright.custom_ops.recorder import RecordedFunction


def function_for(name: str, overload: str = "") -> ir.Function:
    """A fresh copy each time: a model owns the functions in it. It calls none: ONNX Runtime gives
    what it inlines into a loop the names of what it inlined around it."""
    folder = f"edgewright.custom_ops.{OPS[name].function}"
    module = import_module(f"{folder}.{overload}_body" if overload else f"{folder}.body")
    function = _deserialized(getattr(module, name))
    called = {f.identifier(): f for f in _shared_by(function)}
    if called:
        model = ir.Model(function.graph, ir_version=10, functions=list(called.values()))
        InlinePass()(model)
        NameFixPass()(model)
        _share_constants(function.graph, {})
    return ir.Function(
        DOMAIN, name, overload, graph=function.graph, attributes=function.attributes.values()
    )


def attach_functions(model: ir.Model) -> bool:
    """Give each of our ops in `model` its body, so that it runs without the library."""
    used = {node.op_identifier() for node in _ours(model.graph.all_nodes())}
    missing = sorted(used - model.functions.keys())
    for identifier in missing:
        _, name, overload = identifier
        model.functions[identifier] = function_for(name, overload)
        model.opset_imports.setdefault(DOMAIN, VERSION)
    return bool(missing)


def _shared_by(function: ir.Function) -> Iterator[ir.Function]:
    """What it calls, and what that calls."""
    shared = import_module("edgewright.custom_ops.shared_bodies")
    waiting = [function]
    seen: set[str] = set()
    while waiting:
        for name in sorted({node.op_type for node in _ours(waiting.pop().all_nodes())} - seen):
            seen.add(name)
            called = _deserialized(getattr(shared, name))
            _keep_literals(called)
            waiting.append(called)
            yield called


def _deserialized(body: OnnxFunction[..., Any] | RecordedFunction) -> ir.Function:
    return ir.serde.deserialize_function(body.to_function_proto())


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


def _share_constants(graph: ir.Graph, around: dict[bytes, ir.Value]) -> None:
    """What is inlined brings its own constants, and ONNX Runtime makes each a tensor."""
    known = dict(around)
    for node in list(graph):
        if node.op_type != "Constant" or any(a.is_ref() for a in node.attributes.values()):
            continue
        proto = ir.serde.serialize_node(node)
        key = proto.attribute[0].SerializeToString()
        if key in known:
            ir.convenience.replace_all_uses_with(node.outputs[0], known[key])
            graph.remove(node, safe=True)
        else:
            known[key] = node.outputs[0]
            if node is not graph[0]:
                graph.remove(node)
                graph.insert_before(graph[0], node)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _share_constants(attribute.as_graph(), known)


def _ours(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    return (node for node in nodes if node.domain == DOMAIN)
