"""CausalConv in standard ops, for graphs that run without the library."""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors

from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

from edgewright.custom_ops.spec import DOMAIN, VERSION


@script(Opset(DOMAIN, VERSION), default_opset=op)
def CausalConv(x, weight, bias, state, length, activation: str):
    steps = op.Range(0, op.Squeeze(op.Shape(x, start=1, end=2)), 1)
    taps = op.Range(0, op.Squeeze(op.Shape(weight, start=0, end=1)), 1)
    seen = op.Concat(state, x, axis=1)  # [B, K-1+S, C]
    window = op.Gather(seen, op.Add(op.Unsqueeze(steps, [1]), taps), axis=1)  # [B, S, K, C]
    y = op.Add(op.ReduceSum(op.Mul(window, weight), [2], keepdims=0), bias)
    kind = op.Constant(value_string=activation)
    if op.Equal(kind, op.Constant(value_string="silu")):
        acted = op.Mul(y, op.Sigmoid(y))
    else:
        acted = op.Identity(y)
    real = op.Less(op.Unsqueeze(steps, [0]), op.Unsqueeze(length, [1]))  # [B, S]
    settled = op.Where(op.Unsqueeze(real, [2]), acted, op.Constant(value_float=0.0))
    # The last K-1 of them: the first K-1 of all but the oldest `length`.
    kept = op.Add(op.Unsqueeze(length, [1]), op.Slice(taps, [0], [-1]))
    tail = op.GatherND(seen, op.Unsqueeze(kept, [2]), batch_dims=1)
    is_new = op.Unsqueeze(op.Greater(length, 0), [1, 2])
    state_out = op.Where(is_new, tail, state)
    return settled, state_out
