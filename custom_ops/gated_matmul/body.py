"""GatedMatMul in standard ops, for graphs that run without the library."""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors

from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

from edgewright.custom_ops.shared_bodies import PackedMatMul
from edgewright.custom_ops.spec import DOMAIN, VERSION


@script(Opset(DOMAIN, VERSION), default_opset=op)
def GatedMatMul(x, weight, activation: str):
    kind = op.Constant(value_string=activation)
    is_silu = op.Equal(kind, op.Constant(value_string="silu"))
    is_gelu = op.Equal(kind, op.Constant(value_string="gelu"))
    product = op.Identity(x)
    for _turn in range(1):  # see shared_bodies.py
        gate, up = op.Split(PackedMatMul(x, weight, 0), axis=-1, num_outputs=2)
        if is_silu:
            acted = op.Mul(gate, op.Sigmoid(gate))
        else:
            if is_gelu:  # noqa: SIM108 - onnxscript has no conditional expression
                acted = op.Gelu(gate)
            else:
                acted = op.Gelu(gate, approximate="tanh")
        product = op.Mul(acted, up)
    return product
