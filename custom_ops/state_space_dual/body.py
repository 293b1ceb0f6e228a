"""StateSpaceDual as an ONNX function in standard ops: same inputs and outputs as the kernel, so
that a graph runs where no op library does. All steps of a call at once: its cost grows with the
square of their number."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.recorder import RecordedFunction, Recorder
from edgewright.custom_ops.state_space_dual.spec import SPEC


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    x, dt, a, b, c, skip, state, length = inputs
    batch, seq, heads = op.dim(x, 0), op.dim(x, 1), op.dim(state, 1)
    groups = op("Unsqueeze", op.attribute("groups", ir.AttributeType.INT), (0,))
    each = op("Div", heads, groups)  # heads of a group
    offset = op("Range", 0, op("Squeeze", seq), 1)  # [S]
    is_real = op("Less", op("Unsqueeze", offset, (0,)), op("Unsqueeze", length, (1,)))
    is_real = op("Unsqueeze", is_real, (2,))  # [B, S, 1]

    def by_head(tensor: ir.Value, last: ir.Value | tuple[int, ...], perm: list[int]) -> ir.Value:
        shape = op("Concat", batch, seq, groups, last, (-1,), axis=0)
        settled = op("Where", is_real, tensor, 0.0)  # a padded step may hold anything
        return op("Transpose", op("Reshape", settled, shape), perm=perm)

    inputs_ = by_head(x, each, [0, 2, 3, 1, 4])  # [B, G, E, S, P]
    steps = by_head(dt, each, [0, 2, 3, 1, 4])  # [B, G, E, S, 1]
    writes = by_head(b, (1,), [0, 2, 3, 4, 1])  # [B, G, 1, N, S]
    reads = by_head(c, (1,), [0, 2, 3, 1, 4])  # [B, G, 1, S, N]
    column = op("Concat", (1,), groups, each, (1, 1), axis=0)
    log = op("Mul", steps, op("Reshape", a, column))
    weighted = op("Mul", inputs_, steps)

    decay = _decay(op, log, offset)  # [B, G, E, S, S], from the step of a column to that of a row
    held = op("Exp", op("CumSum", log, 3))  # [B, G, E, S, 1]
    scores = op("Mul", op("MatMul", reads, writes), decay)
    is_written = op("Unsqueeze", op("Greater", length, 0), (1, 2, 3))
    # A copy, because outputs and new state both read it, and the write may come between.
    copied = op("Where", is_written, state, 0.0)
    past = op("Reshape", copied, op("Concat", batch, groups, each, op.dim(state, 2), (-1,), axis=0))
    y = op("Add", op("MatMul", scores, weighted), op("Mul", op("MatMul", reads, past), held))
    y = op("Add", y, op("Mul", inputs_, op("Reshape", skip, column)))
    y = op("Reshape", op("Transpose", y, perm=[0, 3, 1, 2, 4]), op("Shape", x))

    last = op("Sub", seq, 1)
    left = op("Transpose", op("Gather", decay, last, axis=3), perm=[0, 1, 2, 4, 3])
    added = op("MatMul", writes, op("Mul", weighted, left))  # [B, G, E, N, P]
    new = op("Add", op("Mul", past, op("Gather", held, last, axis=3)), added)
    return y, op("Where", is_written, op("Reshape", new, op("Shape", state)), state)


StateSpaceDual = RecordedFunction(SPEC, _record)


def _decay(op: Recorder, log: ir.Value, offset: ir.Value) -> ir.Value:
    """exp of the sum of the logs between two steps: sums of their own, where differences of running
    sums would cancel. Zero for a column after its row."""
    row, column = op("Unsqueeze", offset, (1,)), op("Unsqueeze", offset, (0,))
    terms = op("Where", op("Greater", row, column), log, 0.0)
    sums = op("CumSum", terms, 3)
    return op("Where", op("GreaterOrEqual", row, column), op("Exp", sums), 0.0)
