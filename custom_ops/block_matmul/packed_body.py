"""BlockMatMul of a packed weight in standard ops, for graphs that run without the library."""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors

from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

from edgewright.custom_ops.shared_bodies import PackedMatMul
from edgewright.custom_ops.spec import DOMAIN, VERSION


@script(Opset(DOMAIN, VERSION), default_opset=op)
def BlockMatMul(x, weight):
    y = op.Identity(x)
    for _turn in range(1):  # see shared_bodies.py
        y = PackedMatMul(x, weight, 0)
    return y
