"""A traced graph, its plan and the packed weights go in; the graph reads them, each as one value.

Requires the plan of this very graph. Ensures that every planned parameter is gone from it, and that
values keep their names: what is compared with PyTorch is found under PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as standard

from edgewright.artifacts import Blob
from edgewright.custom_ops import DOMAIN
from edgewright.export.quantize.plan import (
    GatedPair,
    WeightGroup,
    gated_pairs,
    gather_uses,
    matmul_uses,
    wide_outputs,
)

# The function body of an op that reads packed weights is an overload of its name.
PACKED = "packed"
# Inputs that ops take as they are.
_WEIGHTS = {"RoutedExperts": (3, 4, 5), "LatentAttention": (3,)}


def pack_graph(
    model: ir.Model, plan: Sequence[WeightGroup], blobs: Mapping[str, Blob]
) -> dict[str, Blob]:
    """Every use of every group reads its blob; gives the blobs by the initializers' names."""
    graph = model.graph
    shapes = {name: _sizes(graph.initializers[name]) for group in plan for name in group.names}
    uses, gathers = matmul_uses(graph, shapes), gather_uses(graph, shapes)
    pairs = gated_pairs(uses)
    packed: dict[str, Blob] = {}
    weights: dict[str, ir.Value] = {}
    for group in plan:
        weight = _initializer(graph, group, blobs[group.key])
        assert weight.name is not None
        packed[weight.name] = blobs[group.key]
        weights[group.key] = weight
        if group.kind == "gather" or group.also_gathered:
            for node in gathers[group.key]:
                _gather(graph, node, weight)
        if group.activation is not None:
            gate, up = group.names
            for pair in pairs[gate, up]:
                _gate(graph, pair, weight)
        elif group.kind == "matmul":
            for nodes in zip(*(uses[name] for name in group.names), strict=True):
                _multiply(graph, nodes, weight, group.rows)
    _replace_inputs(graph, weights)
    standard.RemoveUnusedNodesPass()(model)
    left = {name for group in plan for name in group.names} & graph.initializers.keys()
    assert not left, f"still read as they were: {sorted(left)}"
    standard.TopologicalSortPass()(model)
    return packed


def _initializer(graph: ir.Graph, group: WeightGroup, blob: Blob) -> ir.Value:
    name = f"{joint_name(group.names)}.packed"
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([blob.size]))
    value.const_value = ir.ExternalTensor(
        location=blob.path,
        offset=0,
        length=blob.size,
        dtype=ir.DataType.UINT8,
        shape=ir.Shape([blob.size]),
        name=name,
    )
    graph.register_initializer(value)
    return value


def joint_name(names: Sequence[str]) -> str:
    """layers.0.mixer.query.weight, layers.0.mixer.key.weight → layers.0.mixer.query+key.weight"""
    parts = [name.split(".") for name in names]
    if len({len(each) for each in parts}) > 1:
        return "+".join(names)
    return ".".join("+".join(dict.fromkeys(each)) for each in zip(*parts, strict=True))


def _multiply(
    graph: ir.Graph, nodes: Sequence[ir.Node], weight: ir.Value, rows: Sequence[int]
) -> None:
    """One product in the place of several of the same x."""
    first = next(node for node in graph if node in nodes)
    if len(nodes) == 1:
        first.replace_input_with(1, weight)
        first.overload = PACKED
        return
    joint = ir.Node(DOMAIN, "BlockMatMul", [first.inputs[0], weight], overload=PACKED)
    joint.name = f"{first.name}_joint"
    olds = [node.outputs[0] for node in nodes]
    product = joint.outputs[0]
    product.name = "+".join(str(old.name) for old in olds)
    product.type = olds[0].type
    product.shape = _with_last(olds[0].shape, sum(rows))
    split = ir.Node(
        "",
        "Split",
        [product, _constant(graph, rows)],
        [ir.Attr("axis", ir.AttributeType.INT, -1)],
        num_outputs=len(nodes),
        name=f"{first.name}_split",
    )
    graph.insert_before(first, [joint, split])
    for node, old, new in zip(nodes, olds, split.outputs, strict=True):
        _take_over(old, new)
        graph.remove(node, safe=True)


def _gate(graph: ir.Graph, pair: GatedPair, weight: ir.Value) -> None:
    """act(gate) * up as one node; the four or five it replaces have no reader any more."""
    activation = ir.Attr("activation", ir.AttributeType.STRING, pair.activation)
    node = ir.Node(DOMAIN, "GatedMatMul", [pair.gate.inputs[0], weight], [activation])
    node.name = f"{pair.product.name}_gated"
    graph.insert_before(pair.product, node)
    _take_over(pair.product.outputs[0], node.outputs[0])


def _gather(graph: ir.Graph, gather: ir.Node, weight: ir.Value) -> None:
    node = ir.Node(DOMAIN, "BlockGather", [gather.inputs[1], weight])
    node.name = f"{gather.name}_packed"
    graph.insert_before(gather, node)
    first, *others = wide_outputs(gather)
    _take_over(first, node.outputs[0])
    for other in others:
        ir.convenience.replace_all_uses_with(other, node.outputs[0])


def _replace_inputs(graph: ir.Graph, weights: Mapping[str, ir.Value]) -> None:
    for node in graph:
        for place in _WEIGHTS.get(node.op_type, ()) if node.domain == DOMAIN else ():
            value = node.inputs[place]
            if value is not None and value.name is not None and value.name in weights:
                node.replace_input_with(place, weights[value.name])
                node.overload = PACKED


def _take_over(old: ir.Value, new: ir.Value) -> None:
    """`new` is read where `old` was, under its name."""
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_all_uses_with(old, new)
    new.name, old.name = old.name, f"{old.name}_replaced"


def _constant(graph: ir.Graph, sizes: Sequence[int]) -> ir.Value:
    name = f"rows.{'.'.join(map(str, sizes))}"
    if name not in graph.initializers:
        tensor = ir.Tensor(np.array(sizes, dtype=np.int64), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape))
        value.const_value = tensor
        graph.register_initializer(value)
    return graph.initializers[name]


def _with_last(shape: ir.Shape | None, size: int) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*shape[:-1], size])


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())
