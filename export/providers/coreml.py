"""Apple's CoreML through ONNX Runtime, as ML Programs: static graphs in float16, of floats alone.

The ops, and what is asked of their inputs, are those of ONNX Runtime's own table and its notes,
which the wheel carries (onnxruntime/tools/mobile_helpers/coreml_supported_mlprogram_ops.md, of
1.31.1). Its sources ask for more: opset 20 at most, five dimensions, no arithmetic of integers, no
conversion of an input of the graph, and GatherND from constant places alone, so rows of tables are
products here. Checked by that table and run on the processor; never run on a Mac."""

import onnx_ir as ir

from edgewright.export.providers import Provider
from edgewright.export.static import StaticShapes
from edgewright.export.static.float_counts import count_in_floats
from edgewright.export.static.half_forms import bound_exponents
from edgewright.export.static.plain_forms import declare_plain_opset, write_plainly

_OPS = frozenset(
    {"Add", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Erf", "Exp", "Gelu", "Gemm"}
    | {"LayerNormalization", "MatMul", "Max", "Mul", "Pow", "ReduceMax", "ReduceMean"}
    | {"ReduceSum", "Relu", "Reshape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt"}
    | {"Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Where"}
)
_MOST_DIMENSIONS = 5
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
# The inputs that are constant, by their places.
_CONSTANT = {
    "Clip": (1, 2),
    "Conv": (2,),
    "Gemm": (1, 2),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
}


def limit(node: ir.Node) -> str | None:
    """What CoreML does not take of a node whose op it does take."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.shape is not None and len(value.shape) > _MOST_DIMENSIONS:
            return f"more than {_MOST_DIMENSIONS} dimensions"
    for place in _CONSTANT.get(node.op_type, ()):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and not value.is_initializer():
            return f"input {place} is not constant"
    return _limit_of_type(node) or _limit_of_attributes(node)


def _limit_of_type(node: ir.Node) -> str | None:
    first = 1 if node.op_type == "Where" else 0
    types = [value.dtype for value in node.inputs[first : first + 1] if value is not None]
    if node.op_type == "Cast":
        made = node.inputs[0] is not None and node.inputs[0].producer() is not None
        return None if made else "converts what goes into the graph"
    if any(dtype not in _FLOATS for dtype in types):
        return "computes with values that are no floats"
    if node.op_type == "Pow" and any(v is None or v.dtype != _FLOATS[0] for v in node.inputs):
        return "a power of other values than float32"
    return None


def _limit_of_attributes(node: ir.Node) -> str | None:
    if node.op_type == "Gemm":
        ones = [node.attributes[k].as_float() for k in ("alpha", "beta") if k in node.attributes]
        transposed = "transA" in node.attributes and node.attributes["transA"].as_int() != 0
        return "a transposed or scaled product" if transposed or set(ones) - {1.0} else None
    if node.op_type == "Conv":
        weight = node.inputs[1]
        if weight is None or weight.shape is None or len(weight.shape) not in (3, 4):
            return "a convolution of other than one or two dimensions"
    return None


PROVIDER = Provider(
    name="coreml",
    opset=20,
    ir_version=10,
    onnxruntime_min="1.31",
    domains={"": _OPS},
    native_ops=False,
    limit=limit,
    static=StaticShapes(
        dtype="float16",
        update="delta",
        rewrites=(bound_exponents, count_in_floats, write_plainly, declare_plain_opset),
    ),
    notes=("checked by ONNX Runtime's table of ops and run on the processor; never run on a Mac",),
)
