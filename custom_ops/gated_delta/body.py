"""GatedDelta as an ONNX function in standard ops: same inputs and outputs as the kernel, so that a
graph runs where no op library does. A Scan over the steps."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.gated_delta.spec import SPEC
from edgewright.custom_ops.recorder import RecordedFunction, Recorder


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    query, key, value, decay, beta, state, length = inputs
    batch, seq, heads, size = (
        op.dim(query, 0),
        op.dim(query, 1),
        op.dim(state, 1),
        op.dim(state, 2),
    )
    offset = op("Unsqueeze", op("Range", 0, op("Squeeze", seq), 1), (0,))
    is_real = op("Unsqueeze", op("Less", offset, op("Unsqueeze", length, (1,))), (2,))  # [B, S, 1]
    key_heads = op("Div", op.dim(key, 2), size)
    num_heads = op("Unsqueeze", op.attribute("num_heads", ir.AttributeType.INT), (0,))
    each = op("Div", num_heads, key_heads)  # value heads of a key head

    def by_head(tensor: ir.Value, *tail: ir.Value | int) -> ir.Value:
        """[S, B, ...]: a padded step may hold anything and becomes zeros."""
        parts = [x if isinstance(x, ir.Value) else op.constant((x,)) for x in tail]
        settled = op("Where", is_real, tensor, 0.0)
        shaped = op("Reshape", settled, op("Concat", batch, seq, *parts, axis=0))
        return op("Transpose", shaped, perm=[1, 0, *range(2, 2 + len(tail))])

    def repeated(tensor: ir.Value) -> ir.Value:
        """[S, B, H, Dk] of the key heads."""
        apart = by_head(tensor, key_heads, 1, size)
        shape = op("Concat", seq, batch, key_heads, each, size, axis=0)
        return op(
            "Reshape", op("Expand", apart, shape), op("Concat", seq, batch, heads, size, axis=0)
        )

    scaled = op("Mul", query, op.attribute("scale", ir.AttributeType.FLOAT))
    steps = [
        op("Unsqueeze", repeated(scaled), (3,)),  # [S, B, H, 1, Dk]
        op("Unsqueeze", repeated(key), (3,)),
        by_head(value, heads, 1, -1),  # [S, B, H, 1, Dv]
        op("Exp", by_head(decay, heads, -1, 1)),  # [S, B, H, 1 or Dk, 1]
        by_head(beta, heads, 1, 1),
    ]
    new, outputs = _scan(op, state, steps)
    y = op("Reshape", op("Transpose", outputs, perm=[1, 0, 2, 3, 4]), op("Shape", value))
    is_written = op("Unsqueeze", op("Greater", length, 0), (1, 2, 3))
    return y, op("Where", is_written, new, state)


GatedDelta = RecordedFunction(SPEC, _record)


def _scan(op: Recorder, state: ir.Value, steps: list[ir.Value]) -> tuple[ir.Value, ir.Value]:
    """The state after the last step, and the outputs of all [S, B, H, 1, Dv]."""
    step = Recorder("step.")
    names = ("state", "query", "key", "value", "left", "rate")
    inputs = [ir.Value(name=f"step.{name}") for name in names]
    before, query, key, value, left, rate = inputs
    kept = step("Mul", before, left)
    error = step("Sub", value, step("MatMul", key, kept))
    column = step("Transpose", key, perm=[0, 1, 3, 2])
    after = step("Add", kept, step("Mul", column, step("Mul", error, rate)))
    body = step.graph([after, step("MatMul", query, after)], inputs)
    new, outputs = op.several("Scan", 2, state, *steps, body=body, num_scan_inputs=len(steps))
    return new, outputs
