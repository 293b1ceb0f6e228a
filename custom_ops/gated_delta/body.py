"""GatedDelta as an ONNX function in standard ops: same inputs and outputs as the kernel, so that a
graph runs where no op library does. A Scan over the steps."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.gated_delta.spec import SPEC
from edgewright.custom_ops.recorder import RecordedFunction, Recorder


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    *stepped, state, length = inputs
    batch, heads, size, width = (op.dim(state, axis) for axis in range(4))
    seq = op.dim(stepped[0], 1)
    offset = op("Unsqueeze", op("Range", 0, op("Squeeze", seq), 1), (0,))
    is_real = op("Unsqueeze", op("Less", offset, op("Unsqueeze", length, (1,))), (2,))  # [B, S, 1]
    # A padded step may hold anything. ONNX Runtime's Scan wants at least one step.
    more = op("Concat", (0, 0, 0, 0), op("Max", op("Sub", 1, seq), 0), (0,), axis=0)
    settled = (op("Pad", op("Where", is_real, tensor, 0.0), more) for tensor in stepped)
    query, key, value, decay, beta = settled
    steps = op.dim(query, 1)
    key_heads = op("Div", op.dim(key, 2), size)
    num_heads = op("Unsqueeze", op.attribute("num_heads", ir.AttributeType.INT), (0,))
    each = op("Div", num_heads, key_heads)  # value heads of a key head

    def by_head(tensor: ir.Value, *tail: ir.Value | tuple[int, ...]) -> ir.Value:
        """[S, B, H, ., .]"""
        shaped = op("Reshape", tensor, op("Concat", batch, steps, *tail, axis=0))
        return op("Transpose", shaped, perm=[1, 0, 2, 3, 4])

    def repeated(tensor: ir.Value) -> ir.Value:
        """[S, B, H, 1, Dk] of the key heads."""
        apart = by_head(tensor, key_heads, (1,), size)
        together = op("Expand", apart, op("Concat", steps, batch, key_heads, each, size, axis=0))
        return op("Reshape", together, op("Concat", steps, batch, heads, (1,), size, axis=0))

    scaled = op("Mul", query, op.attribute("scale", ir.AttributeType.FLOAT))
    channels = op("Div", op.dim(decay, 2), heads)
    taken = [
        repeated(scaled),
        repeated(key),
        by_head(value, heads, (1,), width),  # [S, B, H, 1, Dv]
        op("Exp", by_head(decay, heads, channels, (1,))),  # [S, B, H, 1 or Dk, 1]
        by_head(beta, heads, (1, 1)),
    ]
    new, outputs = _scan(op, state, taken)
    y = op("Transpose", outputs, perm=[1, 0, 2, 3, 4])
    y = op("Reshape", y, op("Concat", batch, steps, op("Mul", heads, width), axis=0))
    y = op("Slice", y, (0,), seq, (1,))
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
    given = [after, step("MatMul", query, after)]
    for result in given:  # a Scan needs to know that much, even where no rank is known
        result.shape, result.type = ir.Shape([None] * 4), ir.TensorType(ir.DataType.FLOAT)
    body = step.graph(given, inputs)
    new, outputs = op.several("Scan", 2, state, *steps, body=body, num_scan_inputs=len(steps))
    return new, outputs
