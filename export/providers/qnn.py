"""Qualcomm's HTP through ONNX Runtime's QNN plugin: static graphs in float16, one variant a chip.

The ops are those that QNN EP 2.7.0 placed and computed right on its own HTP backend. It takes none
of ours, and no loop; an attention mask must be of floats, so attention is written out."""

from edgewright.export.providers import Provider
from edgewright.export.static import StaticShapes
from edgewright.export.static.half_forms import write_out_rotation, write_out_sigmoid
from edgewright.export.static.marks import MOVES
from edgewright.export.static.shapes import Quantisation

# Snapdragon 8 Gen 2, 8 Gen 3, 8 Elite and X Elite.
CHIPS = ("sm8550", "sm8650", "sm8750", "sc8380xp")

_OPS = frozenset(
    {"Add", "And", "Cast", "Concat", "Conv", "Cos", "Div", "Equal", "Exp", "Expand", "Gather"}
    | {"GatherElements", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "LayerNormalization", "Less"}
    | {"MatMul", "Max", "Min", "Mul", "Neg", "Pad", "RMSNormalization", "Reciprocal", "ReduceMax"}
    | {"Abs", "ReduceSum", "Relu", "Reshape", "RotaryEmbedding", "Sin", "Slice", "Softmax"}
    | {"Split", "Sqrt", "Squeeze", "Sub", "Tanh", "TopK", "Transpose", "Unsqueeze"}
    | {"Where"}
)

# With more, QNN EP 2.7.0's emulated HTP multiplies wrong in GatedDelta's chunks, or crashes.
_OP_CHUNKS = {"GatedDelta": 8}

# What computes in 16-bit integers as the processor does; the sums and exponentials of recurrences
# lose too much in them, and stay in float16.
INTEGER_OPS = frozenset(
    {"Add", "Gemm", "MatMul", "Mul", "RMSNormalization", "RotaryEmbedding", "Sigmoid", "Softmax"}
    | {"Sub"}
    | MOVES
)
_IN_FLOATS = frozenset({"CausalConv", "GatedDelta", "RoutedExperts", "SelectiveScan"}) | {
    "StateSpaceDual"
}


def _provider(name: str, quantise: Quantisation | None = None) -> Provider:
    rewrites = (write_out_sigmoid,) if quantise is None else (write_out_sigmoid, write_out_rotation)
    quantised = {"DequantizeLinear", "QuantizeLinear", "Sigmoid"} if quantise else set()
    return Provider(
        name=name,
        opset=23,
        ir_version=10,
        onnxruntime_min="1.31",
        domains={"": _OPS | quantised},
        native_ops=False,
        static=StaticShapes(
            dtype="float16",
            update="delta",
            op_chunks=_OP_CHUNKS,
            rewrites=rewrites,
            quantise=quantise,
        ),
    )


PROVIDERS = tuple(
    provider
    for chip in CHIPS
    for provider in (
        _provider(f"qnn:{chip}"),
        _provider(f"qnn:{chip}-w8a16", Quantisation(8, INTEGER_OPS, _IN_FLOATS)),
        _provider(f"qnn:{chip}-w4a16", Quantisation(4, INTEGER_OPS, _IN_FLOATS)),
    )
)
