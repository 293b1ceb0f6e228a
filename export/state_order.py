"""Proof that no graph reads a state after overwriting it: input and output are the same memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops import DOMAIN, OPS
from edgewright.export.graph import Graph

# Standard ops that ONNX Runtime runs in place when input 0 and output 0 share their memory.
_IN_PLACE_STANDARD = frozenset({"ScatterND", "ScatterElements", "TensorScatter"})

# What ONNX Runtime may give its input's memory to, or leave out where it changes nothing.
_VIEWS = frozenset(
    {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Dropout"}
    | {"Cast", "CastLike", "Expand", "Slice", "Transpose"}
)


def prove_state_order(graph: Graph) -> None:
    """Every reader of a past runs before its writer, in the graph and in each function it calls."""
    inputs = {value.name: value for value in graph.model.graph.inputs}
    outputs = {value.name: value for value in graph.model.graph.outputs}
    for spec in graph.layout:
        past, present = inputs[spec.input_name], outputs[spec.output_name]
        _prove(graph.model.graph, spec.name, past, present)
    for function in graph.model.functions.values():
        if function.domain == DOMAIN and function.name in OPS:
            for taken, given in OPS[function.name].in_place_indices():
                name = f"{function.name}.{function.inputs[taken].name}"
                past, present = function.inputs[taken], function.outputs[given]
                _prove(function, name, past, present)


def _prove(nodes: Iterable[ir.Node], name: str, past: ir.Value, present: ir.Value) -> None:
    writer = present.producer()
    if writer is None:
        raise ExportError(f"state {name} is given back as it came: nothing updates it")
    if not _writes_in_place(writer, past, present):
        raise ExportError(
            f"state {name}: {_described(writer)} makes a new tensor of it, in-place update required"
        )
    before = _ancestors(writer)
    for reader in _readers(nodes, past):
        if reader is not writer and reader not in before:
            raise ExportError(
                f"state {name}: {_described(reader)} may read it after {_described(writer)} writes"
            )


def _readers(nodes: Iterable[ir.Node], past: ir.Value) -> Iterator[ir.Node]:
    """Every node that looks at the memory of `past`, under this name or a view's."""
    names = {past}
    for node in nodes:
        if node.op_type == "Shape" or names.isdisjoint(_reads(node)):
            continue
        yield node
        if node.domain == "" and node.op_type in _VIEWS:
            names.update(node.outputs)


def _writes_in_place(writer: ir.Node, past: ir.Value, present: ir.Value) -> bool:
    output = writer.outputs.index(present)
    if writer.domain == DOMAIN and writer.op_type in OPS:
        pairs = OPS[writer.op_type].in_place_indices()
        return any(writer.inputs[i] is past and o == output for i, o in pairs)
    if writer.domain == "" and writer.op_type == "Where":
        return _replaces(writer, past, present)
    return writer.op_type in _IN_PLACE_STANDARD and writer.inputs[0] is past and output == 0


def _replaces(writer: ir.Node, past: ir.Value, present: ir.Value) -> bool:
    """Where reads an operand of its output's shape one element at a time, each just before it
    writes that element. The shapes are equal when it runs, since past and present are one tensor;
    shapes that say otherwise are a mistake."""
    shapes_agree = past.shape is None or present.shape is None or past.shape == present.shape
    return any(operand is past for operand in writer.inputs[1:]) and shapes_agree


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node needs: its inputs, and what its subgraphs take from around them."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            graphs = attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()
            for graph in graphs or (attribute.as_graph(),):
                for inner in graph:
                    yield from _reads(inner)


def _ancestors(node: ir.Node) -> set[ir.Node]:
    """Every node that must have run before this one."""
    found: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        for value in _reads(waiting.pop()):
            producer = value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found


def _described(node: ir.Node) -> str:
    return f"node {node.name or '?'} ({node.op_type})"
