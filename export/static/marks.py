"""Which nodes compute in 16-bit integers: marked where they are recorded, settled later."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from edgewright.export.static.weights import FLOATS

_MARK = "edgewright.quantised"
# What only moves values: one range holds for all that it takes and gives.
MOVES = frozenset(
    {"Concat", "Expand", "Gather", "GatherElements", "Pad", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze", "Where"}
)
PRODUCTS = frozenset({"Gemm", "MatMul"})


def mark(nodes: Iterable[ir.Node], ops: frozenset[str]) -> None:
    for node in nodes:
        if node.domain == "" and node.op_type in ops:
            node.meta[_MARK] = True


def mark_like(nodes: Iterable[ir.Node], other: ir.Node) -> None:
    """Nodes that come in the place of another."""
    for node in nodes:
        if is_marked(other):
            node.meta[_MARK] = True


def is_marked(node: ir.Node | None) -> bool:
    return node is not None and node.meta.get(_MARK, False)


def settle_marks(graph: ir.Graph, positional: set[ir.Value]) -> None:
    """Requires that every type is known. Ensures: no mark on what gives no floats, is made of
    positions alone, looks up a table, multiplies with a constant that is no matrix, or moves what
    no marked node made."""
    for node in graph:
        if is_marked(node) and not _stays(node, positional):
            del node.meta[_MARK]


def _stays(node: ir.Node, positional: set[ir.Value]) -> bool:
    if any(output.dtype not in FLOATS for output in node.outputs):
        return False
    if positional.issuperset(node.outputs):
        return False
    first, second = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type in PRODUCTS and second is not None:
        if first is None or constant_of(first) is not None:
            return False
        held = constant_of(second)
        return held is None or len(held.shape) == 2
    if node.op_type in MOVES:
        makers = [value.producer() for value in node.inputs if value is not None]
        return any(is_marked(maker) for maker in makers)
    return True


def constant_of(value: ir.Value) -> ir.TensorProtocol | None:
    """What an initializer holds, be it converted first."""
    maker = value.producer()
    if maker is not None and maker.op_type == "Cast" and maker.inputs[0] is not None:
        value = maker.inputs[0]
    return value.const_value if value.is_initializer() else None
