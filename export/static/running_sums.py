"""CumSum becomes a product with a triangle of ones: few providers take it of any axis, or from the
end, and a product adds up the same values."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.recorder import Recorder
from edgewright.export.static.half_forms import replace_node


def multiply_sums(model: ir.Model) -> None:
    """Requires sizes that are numbers. Ensures: no CumSum."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "CumSum":
            continue
        value, axis = node.inputs
        assert value is not None and value.shape is not None and axis is not None
        if axis.const_value is None or not value.shape.is_static():
            raise ExportError(f"node {node.name} (CumSum) has an axis or sizes that vary")
        sizes = [int(size) for size in value.shape.numpy()]
        place = int(axis.const_value.numpy().reshape(())) % len(sizes)
        op = Recorder(prefix=f"{node.name}_")
        flat = (math.prod(sizes[:place]), sizes[place], math.prod(sizes[place + 1 :]))
        triangle = _triangle(graph, sizes[place], _flag(node, "exclusive"), _flag(node, "reverse"))
        new = op("Reshape", op("MatMul", triangle, op("Reshape", value, flat)), tuple(sizes))
        replace_node(graph, node, op, new)


def _triangle(graph: ir.Graph, size: int, exclusive: bool, reverse: bool) -> ir.Value:
    name = f"triangle.{size}{'.exclusive' * exclusive}{'.reverse' * reverse}"
    if name not in graph.initializers:
        rows: NDArray[np.float32] = np.tri(size, k=-int(exclusive), dtype=np.float32)
        tensor = ir.Tensor(np.ascontiguousarray(rows.T) if reverse else rows, name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == 1
