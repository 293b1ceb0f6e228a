"""OpenVINO on the processor, through onnxruntime-openvino: static graphs in float32.

The ops are those that onnxruntime-openvino 1.24.1 placed and computed right. Norms and rotations of
opset 23 it does not take, and cannot divide a graph that has them."""

from edgewright.export.providers import Provider
from edgewright.export.static import StaticShapes
from edgewright.export.static.half_forms import write_out_softplus
from edgewright.export.static.plain_forms import (
    declare_plain_opset,
    read_every_input,
    write_plainly,
)

_OPS = frozenset(
    {"Add", "And", "Concat", "Conv", "Div", "Exp", "Gather", "GatherElements", "Gemm"}
    | {"GreaterOrEqual", "Less", "MatMul", "Max", "Min", "Mul", "ReduceMax", "ReduceMean"}
    | {"ReduceSum", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Squeeze"}
    | {"Sub", "Tile", "Transpose", "Unsqueeze", "Where"}
)

PROVIDER = Provider(
    name="openvino",
    opset=20,
    ir_version=10,
    onnxruntime_min="1.24",
    domains={"": _OPS},
    native_ops=False,
    static=StaticShapes(
        dtype="float32",
        update="delta",
        # A softplus as a series needs no logarithm; an input that nothing reads shifts the others.
        rewrites=(write_out_softplus, write_plainly, read_every_input, declare_plain_opset),
    ),
)
