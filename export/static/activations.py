"""Static graphs and rows of tokens go in; between what each of their floats lies comes out.

A row is read as a session would: chunk by chunk, its last tokens one by one. A range goes from the
least value to the greatest, and is made wider by a quarter: 16 bits have steps to spare, and what
lies beyond a range is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.manifest import GraphRole
from edgewright.artifacts.states import StateLayout
from edgewright.export.graph import Graph
from edgewright.export.static.marks import constant_of, is_marked
from edgewright.export.static.shapes import StaticShapes
from edgewright.runtime.ort import EXTERNAL_DATA, OrtSession, load_onnxruntime

Range = tuple[float, float]
Progress = Callable[[str, int, int], None]

_DECODED = 16  # tokens of each row that are read one by one
_MARGIN = 1.25
# What is below it is no value but a mask.
MASK = -1e4
_LEAST, _MOST = "least.", "most."


def measure(
    graphs: Mapping[GraphRole, Graph],
    shapes: StaticShapes,
    folder: Path,
    rows: NDArray[np.int64],
    tell: Progress,
) -> Mapping[GraphRole, Mapping[str, Range]]:
    """`folder` is where the graphs' weights lie; `rows` [n, tokens]."""
    probes = {role: _Probe.open(graph, folder) for role, graph in graphs.items()}
    for done, row in enumerate(rows):
        tell("measuring activations", done, len(rows))
        for first in range(0, len(row), shapes.capacity):
            piece = row[first : first + shapes.capacity]
            _read(probes, shapes, graphs["prefill"].layout, piece)
    found = {role: probe.ranges() for role, probe in probes.items()}
    return {role: _with_those_of_others(found, graphs, role) for role in found}


def _with_those_of_others(
    found: Mapping[GraphRole, Mapping[str, Range]],
    graphs: Mapping[GraphRole, Graph],
    role: GraphRole,
) -> dict[str, Range]:
    """Both graphs come of one: a value of the same name and maker is the same, for other tokens."""
    makers = {other: _makers(graph.model.graph) for other, graph in graphs.items()}
    joined = dict(found[role])
    for other, ranges in found.items():
        for name, (least, most) in ranges.items():
            if name in joined and makers[other].get(name) == makers[role].get(name):
                joined[name] = min(joined[name][0], least), max(joined[name][1], most)
    return joined


def _makers(graph: ir.Graph) -> dict[str | None, str]:
    return {value.name: node.op_type for node in graph for value in node.outputs}


def measured(graph: ir.Graph) -> list[ir.Value]:
    """The floats that marked nodes give, and those that they take from others."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if is_marked(node):
            values = (value for value in (*node.inputs, *node.outputs) if value is not None)
            found |= dict.fromkeys(filter(_is_float, values))
    return list(found)


def _is_float(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.FLOAT or value.is_initializer():
        return False
    return constant_of(value) is None


def _read(
    probes: Mapping[GraphRole, _Probe],
    shapes: StaticShapes,
    layout: StateLayout,
    row: NDArray[np.int64],
) -> None:
    states = {
        spec.input_name: np.zeros(spec.resolve(1, shapes.capacity), spec.dtype) for spec in layout
    }
    first, single = 0, max(0, len(row) - _DECODED)
    while first < len(row):
        role: GraphRole = "prefill" if first < single else "decode"
        count = min(shapes.chunk, single - first) if role == "prefill" else 1
        ids = np.zeros((1, shapes.chunk if role == "prefill" else 1), np.int64)
        ids[0, :count] = row[first : first + count]
        feeds = {
            "input_ids": ids,
            "start": np.array([first]),
            "length": np.array([count]),
            "logit_index": np.array([[count - 1]]),
        }
        given = probes[role].run(feeds | states)
        for spec in layout:
            new, held = given[spec.output_name], states[spec.input_name]
            if spec.update == "delta" and "capacity" in spec.shape:
                axis = spec.shape.index("capacity")
                place = [slice(None)] * held.ndim
                place[axis] = slice(first, first + count)
                held[tuple(place)] = np.take(new, range(count), axis)
            else:
                states[spec.input_name] = new
        first += count


@dataclass
class _Probe:
    session: OrtSession
    names: Sequence[str]  # outputs of the graph itself
    watched: Sequence[str]
    least: NDArray[np.float32]
    most: NDArray[np.float32]

    @classmethod
    def open(cls, graph: Graph, folder: Path) -> _Probe:
        ort = load_onnxruntime()
        watched = [str(value.name) for value in measured(graph.model.graph)]
        model = ir.serde.serialize_model(graph.model)
        names = [output.name for output in model.graph.output]
        _watch(model.graph, watched)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(EXTERNAL_DATA, str(folder))
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        least, most = np.zeros((2, len(watched)), np.float32)
        return cls(session, names, watched, least, most)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        ends = [end + name for end in (_LEAST, _MOST) for name in self.watched]
        given = self.session.run([*self.names, *ends], feeds)
        count = len(self.names)
        values = np.array(given[count:], np.float32).reshape(2, -1)
        self.least, self.most = np.minimum(self.least, values[0]), np.maximum(self.most, values[1])
        return dict(zip(self.names, given[:count], strict=True))

    def ranges(self) -> dict[str, Range]:
        for name, least, most in zip(self.watched, self.least, self.most, strict=True):
            if not (np.isfinite(least) and np.isfinite(most)):
                raise ExportError(f"{name} is not finite on the calibration text")
        pairs = zip(self.least * _MARGIN, self.most * _MARGIN, strict=True)
        found = [(float(least), float(most)) for least, most in pairs]
        return dict(zip(self.watched, found, strict=True))


def _watch(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Two more outputs for each of these values; a mask is not among them."""
    mask, zero = (
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        for name, value in (("least.mask", MASK), ("least.zero", 0.0))
    )
    graph.initializer.extend([mask, zero])
    for name in names:
        graph.node.extend(
            [
                helper.make_node("Less", [name, mask.name], [f"masked.{name}"]),
                helper.make_node("Where", [f"masked.{name}", zero.name, name], [f"kept.{name}"]),
                helper.make_node("ReduceMin", [f"kept.{name}"], [_LEAST + name], keepdims=0),
                helper.make_node("ReduceMax", [name], [_MOST + name], keepdims=0),
            ]
        )
        graph.output.extend(
            helper.make_tensor_value_info(end + name, TensorProto.FLOAT, [])
            for end in (_LEAST, _MOST)
        )
