"""WebGPU through onnxruntime-webgpu, -node and -web: static graphs in float16, or in float32 for
adapters without it, such as Chromium's in software.

The ops are those that onnxruntime-webgpu 1.27 ran on the device and computed right on a software
adapter. Its GroupQueryAttention errs where subgroups are narrow, and ONNX's Attention goes to the
processor, so attention is written out. Integers are int32; int64 is computed on the processor."""

import onnx_ir as ir

from edgewright.custom_ops.recorder import MICROSOFT
from edgewright.export.providers import Provider
from edgewright.export.static import ComputeDtype, StaticShapes
from edgewright.export.static.device_forms import (
    choose_extremes,
    move_no_booleans,
    multiply_masks,
    narrow_integers,
)
from edgewright.export.static.fused_recurrences import causal_conv, gated_delta, state_space_dual

_OPS = frozenset(
    {"Abs", "Add", "And", "Cast", "Concat", "Conv", "Div", "Equal", "Exp", "Expand", "Gather"}
    | {"GatherElements", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "LayerNormalization", "Less"}
    | {"Log", "MatMul", "Mul", "Neg", "Not", "Pad", "RMSNormalization", "Reciprocal", "ReduceMax"}
    | {"ReduceSum", "Relu", "Reshape", "RotaryEmbedding", "ScatterElements", "Sigmoid", "Slice"}
    | {"Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze"}
    | {"Where"}
)
_FUSED = frozenset({"CausalConvWithState", "LinearAttention", "MatMulNBits"})

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_NUMBERS = _FLOATS | {ir.DataType.INT32}
_ALL = _NUMBERS | {ir.DataType.BOOL}
_TYPES = {
    "": _NUMBERS,
    **dict.fromkeys(("And", "Not"), frozenset({ir.DataType.BOOL})),
    **dict.fromkeys(("Cast", "Unsqueeze", "Where", "Less", "Greater", "GreaterOrEqual"), _ALL),
    "Equal": _ALL,
    **dict.fromkeys(("Abs", "Neg", "Relu", "Slice"), _FLOATS),
    # The places that TopK finds are int64, and may be gathered from.
    **dict.fromkeys(("TopK", "Gather"), _NUMBERS | {ir.DataType.INT64}),
}

# The device sums up products in float16, which errs more than twice as much as torch does. Weights
# are stored in float16 all the same.
_WIDE = frozenset({"Gemm", "Softmax"})


def _provider(name: str, dtype: ComputeDtype) -> Provider:
    return Provider(
        name=name,
        opset=23,
        ir_version=10,
        onnxruntime_min="1.27",
        domains={"": _OPS, MICROSOFT: _FUSED},
        types=_TYPES,
        native_ops=False,
        static=StaticShapes(
            dtype=dtype,
            wide_ops=_WIDE,
            lowerings={
                "CausalConv": causal_conv,
                "GatedDelta": gated_delta,
                "StateSpaceDual": state_space_dual,
            },
            rewrites=(choose_extremes, multiply_masks, move_no_booleans, narrow_integers),
        ),
    )


PROVIDERS = (_provider("webgpu", "float16"), _provider("webgpu:f32", "float32"))
