"""A static lowering and its inputs go in; what ONNX Runtime makes of it comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

Array = NDArray[Any]
# What providers without loops and dynamic shapes do not take.
REFUSED = frozenset({"Loop", "Scan", "If", "Shape", "NonZero", "Range", "ConstantOfShape", "Slice"})


def run_static(function: ir.Function, inputs: Mapping[str, Array]) -> list[Array]:
    """The function's nodes as a graph of their own, every shape known; outputs are float32."""
    graph = function.graph
    used = {node.op_type for node in graph.all_nodes()}
    assert not REFUSED & used, REFUSED & used
    for value in graph.inputs:
        array = inputs[value.name or ""]
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    for output in graph.outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    results: list[Array] = session.run(None, {n: a for n, a in inputs.items() if n in names})
    return results
