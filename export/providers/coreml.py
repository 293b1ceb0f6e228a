"""draft"""
from edgewright.export.providers import Provider
from edgewright.export.static import StaticShapes
from edgewright.export.static.float_counts import count_in_floats
from edgewright.export.static.half_forms import bound_exponents
from edgewright.export.static.plain_forms import declare_plain_opset, write_plainly

_OPS = frozenset(
    {"Add", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Erf", "Exp", "Gelu", "Gemm"}
    | {"LayerNormalization", "MatMul", "Max", "Mul", "ReduceMax", "ReduceMean", "ReduceSum"}
    | {"Relu", "Reshape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze"}
    | {"Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where"}
)
PROVIDER = Provider(
    name="coreml", opset=20, ir_version=10, onnxruntime_min="1.31", domains={"": _OPS}, native_ops=False,
    static=StaticShapes(dtype="float16", update="delta", rewrites=(bound_exponents, count_in_floats, write_plainly, declare_plain_opset)),
)
