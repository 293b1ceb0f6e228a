"""DirectML through onnxruntime-directml, whose last release is 1.24.4, or onnxruntime-node: static
graphs in float16.

The ops are those that DirectML placed and computed right under Wine, most of them one at a time.
No whole model has run there yet: a session with bamba's graph fails to open. It has none of opset
22 or later, no ScatterElements, and no fused attention that takes rotated keys: attention is
written out, and what a state gains is given as a delta."""

from edgewright.custom_ops.recorder import MICROSOFT
from edgewright.export.providers import Provider
from edgewright.export.static import StaticShapes
from edgewright.export.static.device_forms import narrow_integers, norm_in_opset_21

_OPS = frozenset(
    {"Abs", "Add", "And", "Cast", "Concat", "Conv", "Div", "Equal", "Exp", "Expand", "Gather"}
    | {"GatherElements", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "LayerNormalization", "Less"}
    | {"MatMul", "Max", "Min", "Mul", "Neg", "Pad", "Reciprocal", "ReduceMax", "ReduceSum", "Relu"}
    | {"Reshape", "Sigmoid", "SimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Sqrt"}
    | {"Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze", "Where"}
)


PROVIDER = Provider(
    name="directml",
    opset=21,
    ir_version=10,
    onnxruntime_min="1.24",
    domains={"": _OPS, MICROSOFT: frozenset({"MatMulNBits"})},
    native_ops=False,
    static=StaticShapes(
        dtype="float16",
        update="delta",
        rewrites=(norm_in_opset_21, narrow_integers),
    ),
    notes=("made by the table of DirectML's ops; no whole model has run there yet",),
)
