"""Angles of positions become rows of a table: a provider needs no Cos and no Sin, and computes no
position in a float type too narrow for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgewright.custom_ops.recorder import Recorder
from edgewright.export.graph import Graph
from edgewright.export.static.shapes import StaticShapes
from edgewright.export.static.weights import FLOATS, WeightConverter

_TURNS = frozenset({"Cos", "Sin"})


def tabulate(graph: Graph, shapes: StaticShapes, seq: int, weights: WeightConverter) -> None:
    """Requires sizes that are numbers. Ensures: what is made of `start` and `length` alone, through
    a cosine or a sine, is read from a table of every position there is room for, or from one of two
    tables; but for a rotation that changes more than once, within that room, with the number of
    tokens held."""
    model = graph.model.graph
    inputs = [value for value in model.inputs if value.name in ("start", "length")]
    found = _functions_of(model, inputs)
    ends = [
        value for value in found if any(use.node.outputs[0] not in found for use in value.uses())
    ]
    for value in ends:
        tables = None
        if found[value] and value.dtype in FLOATS:
            tables = _tables(_Rows(model, inputs, value, shapes.capacity, seq))
        if tables is not None:
            op = Recorder(prefix=f"{value.name}_rows_")
            positions = _positions(op, inputs[0], shapes.capacity, seq)
            new = _looked_up(op, inputs, positions, _held(model, value, tables, weights), tables)
            _replace(model, value, op, new)


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


class _Rows:
    """What the graph's own nodes make of each position, by the tokens that are held."""

    def __init__(
        self, graph: ir.Graph, inputs: list[ir.Value], value: ir.Value, capacity: int, seq: int
    ) -> None:
        part = ir.convenience.extract(graph, inputs, [value])
        self._run = ReferenceEvaluator(ir.serde.serialize_model(ir.Model(part, ir_version=10)))
        self._seq = seq
        self.capacity = capacity

    def of(self, held: int) -> NDArray[np.float32]:
        """[capacity, width]"""
        pieces = []
        for first in range(0, self.capacity, self._seq):
            feeds = {"start": np.array([first]), "length": np.array([held - first])}
            pieces.append(np.asarray(next(iter(self._run.run(None, feeds))))[0])
        rows: NDArray[np.float32] = np.concatenate(pieces)[: self.capacity].astype(np.float32)
        return rows

    def equal(self, held: int, others: NDArray[np.float32]) -> bool:
        return np.array_equal(self.of(held), others)


@dataclass(frozen=True)
class _Tables:
    """`few` below so many tokens held as `change` says, `many` from there on."""

    many: NDArray[np.float32]
    few: NDArray[np.float32] | None = None
    change: int = 0


def _tables(rows: _Rows) -> _Tables | None:
    """None where rotations change more than once as tokens come to be held."""
    few, many = rows.of(1), rows.of(rows.capacity)
    if np.array_equal(few, many):
        return _Tables(many)
    low, high = 1, rows.capacity
    while high - low > 1:
        middle = (low + high) // 2
        if rows.equal(middle, few):
            low = middle
        else:
            high = middle
    steps_once = rows.equal(high, many) and rows.equal((high + rows.capacity) // 2, many)
    return _Tables(many, few, high) if steps_once else None


def _positions(op: Recorder, start: ir.Value, capacity: int, seq: int) -> ir.Value:
    """[1, seq]; those of padded tokens may lie beyond the last."""
    steps = op("Add", op("Reshape", start, (1, 1)), tuple(range(seq)))
    return op("Min", steps, capacity - 1)


def _held(
    graph: ir.Graph, value: ir.Value, tables: _Tables, weights: WeightConverter
) -> list[ir.Value]:
    held = [_table(graph, f"{value.name}_rows", tables.many, weights)]
    if tables.few is not None:
        held.append(_table(graph, f"{value.name}_few_rows", tables.few, weights))
    return held


def _looked_up(
    op: Recorder,
    inputs: list[ir.Value],
    positions: ir.Value,
    held: list[ir.Value],
    tables: _Tables,
) -> ir.Value:
    many, *few = (op("Gather", table, positions, axis=0) for table in held)
    if not few:
        return many
    return op("Where", op("Less", op("Add", *inputs), tables.change), few[0], many)


def _replace(graph: ir.Graph, value: ir.Value, op: Recorder, new: ir.Value) -> None:
    writer = value.producer()
    assert writer is not None
    graph.insert_before(writer, op.nodes)
    new.type, new.shape = value.type, value.shape
    ir.convenience.replace_all_uses_with(value, new)
    new.name, value.name = value.name, f"{value.name}_computed"


def _table(
    graph: ir.Graph, name: str, rows: NDArray[np.float32], weights: WeightConverter
) -> ir.Value:
    tensor = weights.large(rows, name)
    made = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
    )
    graph.register_initializer(made)
    return made
