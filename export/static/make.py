"""A stored graph and sizes go in; its prefill and its decode graph come out, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as standard

from edgewright.artifacts import Blob, PackageWriter
from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.manifest import GraphRole
from edgewright.custom_ops import DOMAIN
from edgewright.export.graph import Graph
from edgewright.export.passes import simplify
from edgewright.export.state_order import prove_state_order
from edgewright.export.static.activations import Progress, measure
from edgewright.export.static.half_forms import bound_exponents, write_out_softplus
from edgewright.export.static.lowering import infer_shapes, lower_ops, set_sizes
from edgewright.export.static.marks import settle_marks
from edgewright.export.static.precision import compute_in, positional_values
from edgewright.export.static.quantise import quantise
from edgewright.export.static.rotations import tabulate
from edgewright.export.static.running_sums import multiply_sums
from edgewright.export.static.shapes import StaticShapes
from edgewright.export.static.weights import WeightConverter
from edgewright.export.stored import Stored

Rows = Callable[[], NDArray[np.int64]]

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
_FOLD_LIMIT_BYTES = 16 << 10  # what is larger is a blob, and not read
# What no provider of static graphs takes.
_DYNAMIC = frozenset({"Loop", "Scan", "If", "Shape", "NonZero", "Range", "ConstantOfShape"})


@dataclass
class StaticGraphs:
    """Those of one stored graph, made once for all providers that want the same. `rows` gives the
    tokens [n, tokens] to measure activations on, where those are quantised."""

    stored: Stored
    writer: PackageWriter
    rows: Rows
    tell: Progress
    _made: list[tuple[StaticShapes, Mapping[GraphRole, Stored]]] = field(default_factory=list)

    def of(self, shapes: StaticShapes) -> Mapping[GraphRole, Stored]:
        for known, made in self._made:
            if known == shapes:
                return made
        made = make_static(self.stored, shapes, self.writer, self.rows, self.tell)
        self._made.append((shapes, made))
        return made


def make_static(
    stored: Stored, shapes: StaticShapes, writer: PackageWriter, rows: Rows, tell: Progress
) -> Mapping[GraphRole, Stored]:
    """Ensures: standard ops alone, every size a number, no loop; the same weights for both."""
    blobs = (*stored.packed.values(), *stored.kept.values())
    weights = WeightConverter(blobs, writer)
    layout = shapes.layout(stored.graph.layout)
    made: dict[GraphRole, Graph] = {}
    kept: dict[str, Blob] = {}
    sizes: tuple[tuple[GraphRole, int], ...] = (("prefill", shapes.chunk), ("decode", 1))
    for role, seq in sizes:
        model = ir.serde.deserialize_model(ir.serde.serialize_model(stored.graph.model))
        graph = Graph(model, layout)
        _lower(graph, shapes, seq, weights)
        made[role] = graph
    if shapes.quantise is not None:
        ranges = measure(made, shapes, writer.folder, rows(), tell)
        for role, graph in made.items():
            quantise(graph.model.graph, ranges[role], weights, shapes.quantise)
            standard.RemoveUnusedNodesPass()(graph.model)
            standard.TopologicalSortPass()(graph.model)
    for graph in made.values():
        kept |= _blobs(graph.model.graph, weights)
    inline = stored.kept_bytes - sum(blob.size for blob in stored.kept.values())
    width = 4 if "float32" in stored.kept_dtypes else 2
    inline = max(0, inline - width * weights.quantised_values) + weights.quantised_bytes
    return {
        role: replace(
            stored,
            graph=graph,
            packed={},
            packed_dtypes=(),
            kept=kept,
            kept_bytes=inline + sum({blob.path: blob.size for blob in kept.values()}.values()),
            kept_dtypes=_weight_dtypes(shapes),
        )
        for role, graph in made.items()
    }


def _weight_dtypes(shapes: StaticShapes) -> tuple[str, ...]:
    how = shapes.quantise
    return (shapes.dtype,) if how is None else (f"int{how.bits}", shapes.dtype)


def _lower(graph: Graph, shapes: StaticShapes, seq: int, weights: WeightConverter) -> None:
    dtype = _TYPES[shapes.dtype]
    _unpack(graph.model.graph, dtype, weights)
    set_sizes(graph, shapes, seq)
    lower_ops(graph, shapes, seq)
    _fold(graph.model)
    multiply_sums(graph.model)
    tabulate(graph, shapes, seq, weights)
    for rewrite in shapes.rewrites:
        rewrite(graph.model)
    if shapes.dtype == "float16":
        write_out_softplus(graph.model)
        _fold(graph.model)
        bound_exponents(graph.model)
    _fold(graph.model)
    settle_marks(graph.model.graph, positional_values(graph.model.graph))
    compute_in(graph, dtype, weights)
    _fold(graph.model)
    _refuse_dynamic(graph.model.graph)
    if shapes.update == "in_graph":
        prove_state_order(graph)


def _unpack(graph: ir.Graph, dtype: ir.DataType, weights: WeightConverter) -> None:
    """Packed weights that our ops read become matrices of floats."""
    for node in graph:
        for value in node.inputs if node.domain == DOMAIN else ():
            if value is None or value.dtype != ir.DataType.UINT8 or value.const_value is None:
                continue
            held = value.const_value
            assert isinstance(held, ir.ExternalTensor)
            tensor = weights.unpacked(held, 3 if node.op_type == "RoutedExperts" else 2, dtype)
            value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
            value.type = ir.TensorType(tensor.dtype)


def _fold(model: ir.Model) -> None:
    """Shapes are inferred, and what they make constant is."""
    for _ in range(2):  # what is folded first tells the inference more
        infer_shapes(model)
        simplify(model, limit_bytes=_FOLD_LIMIT_BYTES)
    infer_shapes(model)


def _refuse_dynamic(graph: ir.Graph) -> None:
    for node in graph:
        varies = node.op_type in _DYNAMIC
        if node.op_type == "Slice":
            varies = any(
                value is not None and not value.is_initializer() for value in node.inputs[1:]
            )
        if varies or any(
            v.shape is None or not v.shape.is_static() for v in node.outputs if v.name
        ):
            raise ExportError(
                f"node {node.name} ({node.op_type}) has sizes that vary from call to call"
            )


def _blobs(graph: ir.Graph, weights: WeightConverter) -> dict[str, Blob]:
    return {
        name: weights.blob_of(value.const_value)
        for name, value in graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
