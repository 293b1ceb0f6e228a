"""Angles of positions become rows of a table: a provider needs no Cos and no Sin, and computes no
position in a float type too narrow for it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgewright.export.graph import Graph
from edgewright.export.static.shapes import StaticShapes
from edgewright.export.static.weights import FLOATS, WeightConverter

_TURNS = frozenset({"Cos", "Sin"})


def tabulate(graph: Graph, shapes: StaticShapes, seq: int, weights: WeightConverter) -> None:
    """Requires sizes that are numbers. Ensures: what is made of `start` and `length` alone, through
    a cosine or a sine, is read from a table of every position there is room for; but for a rotation
    that changes, within that room, with the number of tokens held."""
    model = graph.model.graph
    inputs = [value for value in model.inputs if value.name in ("start", "length")]
    found = _functions_of(model, inputs)
    ends = [
        value for value in found if any(use.node.outputs[0] not in found for use in value.uses())
    ]
    positions: ir.Value | None = None
    for value in ends:
        rows = _rows(model, inputs, value, shapes.capacity, seq) if found[value] else None
        if rows is None or value.dtype not in FLOATS:
            continue
        positions = positions or _positions(graph, inputs[0], shapes.capacity, seq)
        _read(model, value, positions, weights.large(rows, f"{value.name}_rows"))


def _functions_of(graph: ir.Graph, inputs: list[ir.Value]) -> dict[ir.Value, bool]:
    """Every value that depends on these inputs and on constants: whether a cosine or a sine led to
    it."""
    found = dict.fromkeys(inputs, False)
    for node in graph:
        values = [value for value in node.inputs if value is not None]
        if len(node.outputs) != 1 or not any(value in found for value in values):
            continue
        if all(value in found or value.is_initializer() for value in values):
            turned = any(found.get(value, False) for value in values)
            found[node.outputs[0]] = turned or node.op_type in _TURNS
    return found


def _rows(
    graph: ir.Graph, inputs: list[ir.Value], value: ir.Value, capacity: int, seq: int
) -> NDArray[np.float32] | None:
    """[capacity, width], from the graph's own nodes; None where the tokens held so far matter.
    Rotations change with those, if at all, beyond a certain number, and then for good."""
    part = ir.convenience.extract(graph, inputs, [value])
    run = ReferenceEvaluator(ir.serde.serialize_model(ir.Model(part, ir_version=10)))
    firsts = range(0, capacity, seq)

    def all_rows(held: int) -> NDArray[np.float32]:
        feeds = (
            {"start": np.array([first]), "length": np.array([held - first])} for first in firsts
        )
        pieces = [np.asarray(next(iter(run.run(None, feed))))[0] for feed in feeds]
        rows: NDArray[np.float32] = np.concatenate(pieces)[:capacity].astype(np.float32)
        return rows

    most = all_rows(capacity)
    return most if np.array_equal(most, all_rows(1)) else None


def _positions(graph: Graph, start: ir.Value, capacity: int, seq: int) -> ir.Value:
    """[1, seq]; those of padded tokens may lie beyond the last."""
    model = graph.model.graph
    tape = ir.tape.Tape()
    steps = _constant(model, "positions.steps", np.arange(seq, dtype=np.int64)[None])
    last = _constant(model, "positions.last", np.array(capacity - 1, dtype=np.int64))
    column = tape.op("Reshape", [start, _constant(model, "positions.shape", np.array([1, 1]))])
    found = tape.op("Min", [tape.op("Add", [column, steps]), last])
    for index, node in enumerate(tape.nodes):
        node.outputs[0].name = f"positions.{index}"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    found.shape = ir.Shape([1, seq])
    model.insert_before(model[0], tape.nodes)
    return found


def _read(graph: ir.Graph, value: ir.Value, positions: ir.Value, table: ir.TensorProtocol) -> None:
    held = ir.Value(
        name=table.name,
        type=ir.TensorType(table.dtype),
        shape=ir.Shape(table.shape.numpy()),
        const_value=table,
    )
    graph.register_initializer(held)
    gather = ir.Node("", "Gather", [held, positions], [ir.Attr("axis", ir.AttributeType.INT, 0)])
    (new,) = gather.outputs
    writer = value.producer()
    assert writer is not None
    gather.name = f"{writer.name}_rows"
    graph.insert_before(writer, gather)
    new.type, new.shape = value.type, value.shape
    ir.convenience.replace_all_uses_with(value, new)
    new.name, value.name = value.name, f"{value.name}_computed"


def _constant(graph: ir.Graph, name: str, values: NDArray[np.int64]) -> ir.Value:
    tensor = ir.Tensor(values.astype(np.int64), name=name)
    made = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
    )
    graph.register_initializer(made)
    return made
