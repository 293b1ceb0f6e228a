"""A traced graph goes in; which parameters are quantised, and which of them as one weight, out.

Matrices that read the same input are one group, its rows those of its members in the graph's order:
their products become one. A gate and an up that meet in act(gate) * up are a group of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgewright.custom_ops import DOMAIN
from edgewright.model.loading import LazyModel

GroupKind = Literal["matmul", "experts", "latent_up", "gather"]
GatedActivation = Literal["silu", "gelu", "gelu_tanh"]
Shapes = Mapping[str, tuple[int, ...]]

# What is smaller costs little and gains nothing: gates of a few rows, groups of a few values.
_LEAST_ROWS = 16
_LEAST_VALUES = 4096
# Which expert a token goes to turns on small differences.
_KEPT = ".router.weight"
_MATRICES = {"gate": 3, "up": 4, "down": 5}  # RoutedExperts' inputs


@dataclass(frozen=True)
class WeightGroup:
    """`shape` is E matrices of N rows and K columns; `rows` are the members' parts of N."""

    names: tuple[str, ...]
    kind: GroupKind
    shape: tuple[int, int, int]
    rows: tuple[int, ...]
    also_gathered: bool = False  # a head that is the embedding too
    activation: GatedActivation | None = None  # the group is [gate; up]

    @property
    def key(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class GatedPair:
    """act(gate(x)) * up(x) as the graph has it: what reads x, and what comes of it."""

    gate: ir.Node
    up: ir.Node
    product: ir.Node
    activation: GatedActivation


def plan_of(graph: ir.Graph, model: LazyModel) -> tuple[WeightGroup, ...]:
    shapes = {name: tensor.shape for name, tensor in model.parameters.items()}
    gathered = {name for name, uses in gather_uses(graph, shapes).items() if uses}
    groups = [*_matmul_groups(graph, shapes, gathered), *_input_groups(graph, shapes)]
    planned = {name for group in groups for name in group.names}
    groups += [
        _group((name,), "gather", shapes) for name in sorted(gathered) if name not in planned
    ]
    return tuple(group for group in groups if _is_large(group))


def matmul_uses(graph: ir.Graph, shapes: Shapes) -> dict[str, list[ir.Node]]:
    """Each matrix worth quantising that nothing but BlockMatMul, or the embedding, reads."""
    found: dict[str, list[ir.Node]] = {}
    gathers = gather_uses(graph, shapes)
    for node in graph:
        if node.domain == DOMAIN and node.op_type == "BlockMatMul":
            name = _name(node.inputs[1])
            if _may_be_packed(name, shapes):
                found.setdefault(name, []).append(node)
    return {
        name: nodes
        for name, nodes in found.items()
        if _readers(nodes[0].inputs[1]) == {*nodes, *gathers.get(name, ())}
    }


def gather_uses(graph: ir.Graph, shapes: Shapes) -> dict[str, list[ir.Node]]:
    """Each embedding, and the nodes that fetch its rows."""
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "Gather" and not node.domain and not _axis(node):
            name = _name(node.inputs[0])
            if _may_be_packed(name, shapes):
                found.setdefault(name, []).append(node)
    return {
        name: nodes
        for name, nodes in found.items()
        if all(
            node in nodes or node.op_type == "BlockMatMul" for node in _readers(nodes[0].inputs[0])
        )
        and all(wide_outputs(node) for node in nodes)
    }


def wide_outputs(gather: ir.Node) -> list[ir.Value]:
    """What an embedding's rows are called once they are float32; empty if they are needed else."""
    rows = gather.outputs[0]
    if rows.dtype == ir.DataType.FLOAT:
        return [rows]
    readers = _readers(rows)
    casts = [node for node in readers if node.op_type == "Cast" and _is_to_float(node)]
    return [node.outputs[0] for node in casts] if len(casts) == len(readers) else []


def gated_pairs(uses: Mapping[str, Sequence[ir.Node]]) -> dict[tuple[str, str], list[GatedPair]]:
    """Pairs of matrices that meet so wherever they are used, by the names (gate, up)."""
    by_output = {node.outputs[0]: node for nodes in uses.values() for node in nodes}
    found: dict[tuple[str, str], list[GatedPair]] = {}
    for gate in by_output.values():
        pair = _gated(gate, by_output)
        if pair is not None:
            names = (_name(pair.gate.inputs[1]), _name(pair.up.inputs[1]))
            found.setdefault(names, []).append(pair)
    return {
        (gate, up): pairs
        for (gate, up), pairs in found.items()
        if gate != up and len(pairs) == len(uses[gate]) == len(uses[up])
    }


def same_input(uses: Mapping[str, Sequence[ir.Node]]) -> list[tuple[str, ...]]:
    """The matrices by what they read, each time they are used; the head stays alone."""
    found: dict[tuple[ir.Value | None, ...], list[str]] = {}
    for name, nodes in uses.items():
        if any(node.outputs[0].is_graph_output() for node in nodes):
            found[(nodes[0].outputs[0],)] = [name]
        else:
            found.setdefault(tuple(node.inputs[0] for node in nodes), []).append(name)
    return [tuple(names) for names in found.values()]


def _matmul_groups(
    graph: ir.Graph, shapes: Shapes, gathered: Iterable[str]
) -> Iterator[WeightGroup]:
    uses = matmul_uses(graph, shapes)
    for name in [name for name in uses if name in gathered]:
        yield _group((name,), "matmul", shapes, also_gathered=True)
        del uses[name]
    pairs = gated_pairs(uses)
    for pair, found in pairs.items():
        yield _group(pair, "matmul", shapes, activation=found[0].activation)
    paired = {name for names in pairs for name in names}
    rest = {name: nodes for name, nodes in uses.items() if name not in paired}
    for names in same_input(rest):
        yield _group(names, "matmul", shapes)


def _input_groups(graph: ir.Graph, shapes: Shapes) -> Iterator[WeightGroup]:
    """What ops take as they are: experts' stacks, all of a layer's or none, and latents' `up`."""
    seen: set[str] = set()
    for node in graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type == "RoutedExperts":
            names = tuple(dict.fromkeys(_name(node.inputs[at]) for at in _MATRICES.values()))
            kind: GroupKind = "experts"
        elif node.op_type == "LatentAttention":
            names, kind = (_name(node.inputs[3]),), "latent_up"
        else:
            continue
        groups = [_group((name,), kind, shapes) for name in names if _may_be_packed(name, shapes)]
        if len(groups) == len(names) and all(map(_is_large, groups)):
            yield from (group for group in groups if group.key not in seen)
            seen.update(names)


def _group(
    names: tuple[str, ...],
    kind: GroupKind,
    shapes: Shapes,
    *,
    also_gathered: bool = False,
    activation: GatedActivation | None = None,
) -> WeightGroup:
    *stack, _, columns = shapes[names[0]]
    rows = tuple(shapes[name][-2] for name in names)
    shape = (math.prod(stack), sum(rows), columns)
    return WeightGroup(names, kind, shape, rows, also_gathered, activation)


def _may_be_packed(name: str, shapes: Shapes) -> bool:
    shape = shapes.get(name, ())
    return len(shape) >= 2 and shape[-2] >= _LEAST_ROWS and not name.endswith(_KEPT)


def _is_large(group: WeightGroup) -> bool:
    return math.prod(group.shape) >= _LEAST_VALUES


def _gated(gate: ir.Node, products: Mapping[ir.Value, ir.Node]) -> GatedPair | None:
    """Sigmoid and Mul, or Gelu, of what `gate` gives, times what another matrix makes of x."""
    found = _activated(gate.outputs[0])
    if found is None:
        return None
    acted, activation = found
    product = _only_reader(acted)
    if product is None or product.op_type != "Mul" or product.domain:
        return None
    other = next((value for value in product.inputs if value is not acted), None)
    up = products.get(other) if other is not None else None
    if up is None or up is gate or up.inputs[0] is not gate.inputs[0]:
        return None
    if _only_reader(up.outputs[0]) is not product or gate.outputs[0].is_graph_output():
        return None
    return GatedPair(gate, up, product, activation)


def _activated(value: ir.Value) -> tuple[ir.Value, GatedActivation] | None:
    readers = _readers(value)
    kinds = sorted((node.domain, node.op_type) for node in readers)
    if kinds == [("", "Gelu")]:
        (node,) = readers
        approximate = node.attributes.get("approximate")
        tanh = approximate is not None and approximate.as_string() == "tanh"
        return node.outputs[0], "gelu_tanh" if tanh else "gelu"
    if kinds == [("", "Mul"), ("", "Sigmoid")]:
        times, sigmoid = sorted(readers, key=lambda node: node.op_type)
        share = sigmoid.outputs[0]
        if _only_reader(share) is times and set(times.inputs) == {value, share}:
            return times.outputs[0], "silu"
    return None


def _only_reader(value: ir.Value) -> ir.Node | None:
    readers = _readers(value)
    return next(iter(readers)) if len(readers) == 1 and not value.is_graph_output() else None


def _readers(value: ir.Value | None) -> set[ir.Node]:
    return set() if value is None else {use.node for use in value.uses()}


def _is_to_float(cast: ir.Node) -> bool:
    return cast.attributes["to"].as_int() == ir.DataType.FLOAT


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get("axis")
    return 0 if axis is None else axis.as_int()
