"""RoutedExperts in standard ops: a loop over the experts that passes over those without tokens."""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors

from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

from edgewright.custom_ops.shared_bodies import StackedCount, StackedMatMul
from edgewright.custom_ops.spec import DOMAIN, VERSION


def over(count, matmul):
    """The body over weights that `count` counts the matrices of and `matmul` multiplies by."""

    @script(Opset(DOMAIN, VERSION), default_opset=op)
    def RoutedExperts(
        x,
        expert_index,
        expert_weight,
        gate,
        up,
        down,
        gate_bias,
        up_bias,
        down_bias,
        activation: str,
        alpha: float,
        limit: float,
    ):
        zero = op.Constant(value_ints=[0])
        one = op.Constant(value_ints=[1])
        minus_one = op.Constant(value_ints=[-1])
        nothing = op.Constant(value_float=0.0)
        highest = op.Constant(value_float=limit)
        kind = op.Constant(value_string=activation)
        is_silu = op.Equal(kind, op.Constant(value_string="silu"))
        is_gelu = op.Equal(kind, op.Constant(value_string="gelu"))
        is_clamped = op.Equal(kind, op.Constant(value_string="swiglu_clamped"))
        has_no_gate = op.Equal(kind, op.Constant(value_string="relu_squared"))
        width = op.Shape(x, start=-1)
        rows = op.Reshape(x, op.Concat(minus_one, width, axis=0))  # [T, H]
        choices = op.Concat(
            op.Shape(rows, start=0, end=1), op.Shape(expert_index, start=-1), axis=0
        )
        index = op.Reshape(expert_index, choices)  # [T, k]
        weight = op.Reshape(expert_weight, choices)
        last_gate_bias = op.Sub(op.Squeeze(op.Shape(gate_bias, start=0, end=1)), 1)
        last_up_bias = op.Sub(op.Squeeze(op.Shape(up_bias, start=0, end=1)), 1)
        last_down_bias = op.Sub(op.Squeeze(op.Shape(down_bias, start=0, end=1)), 1)
        result = op.ConstantOfShape(op.Shape(rows))
        experts = count(up)
        for expert in range(experts):
            chosen = op.Equal(index, expert)  # [T, k]
            times = op.ReduceSum(op.Cast(chosen, to=7), one, keepdims=0)  # [T]
            token = op.NonZero(times)  # [1, tokens of this expert]
            if op.Squeeze(op.Greater(op.Shape(token, start=1), zero)):
                at = op.Squeeze(token, zero)
                share = op.Gather(op.ReduceSum(op.Where(chosen, weight, nothing), one), at)
                own = op.Gather(rows, at)
                u = op.Add(
                    matmul(own, up, expert), op.Gather(up_bias, op.Min(expert, last_up_bias))
                )
                if has_no_gate:
                    positive = op.Relu(u)
                    hidden = op.Mul(positive, positive)
                else:
                    own_gate_bias = op.Gather(gate_bias, op.Min(expert, last_gate_bias))
                    g = op.Add(matmul(own, gate, expert), own_gate_bias)
                    if is_clamped:
                        low = op.Min(g, highest)
                        gated = op.Mul(low, op.Sigmoid(op.Mul(low, op.Constant(value_float=alpha))))
                        hidden = op.Mul(op.Add(op.Clip(u, op.Neg(highest), highest), 1.0), gated)
                    else:
                        if is_silu:
                            acted = op.Mul(g, op.Sigmoid(g))
                        else:
                            if is_gelu:  # noqa: SIM108 - onnxscript has no conditional expression
                                acted = op.Gelu(g)
                            else:
                                acted = op.Gelu(g, approximate="tanh")
                        hidden = op.Mul(acted, u)
                y = op.Add(
                    matmul(hidden, down, expert),
                    op.Gather(down_bias, op.Min(expert, last_down_bias)),
                )
                updated = op.ScatterND(
                    result, op.Transpose(token, perm=[1, 0]), op.Mul(y, share), reduction="add"
                )
            else:
                updated = op.Identity(result)
            result = op.Identity(updated)
        return op.Reshape(result, op.Shape(x))

    return RoutedExperts


RoutedExperts = over(StackedCount, StackedMatMul)
