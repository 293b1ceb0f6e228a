"""StateSpaceDual as an ONNX function in standard ops: same inputs and outputs as the kernel, so
that a graph runs where no op library does. All steps of a call at once: its cost grows with the
square of their number."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.recorder import RecordedFunction, Recorder
from edgewright.custom_ops.state_space_dual.chunk import Chunk, record_chunk
from edgewright.custom_ops.state_space_dual.spec import SPEC


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    x, dt, a, b, c, skip, state, length = inputs
    batch, seq, heads = op.dim(x, 0), op.dim(x, 1), op.dim(state, 1)
    size, width = op.dim(state, 2), op.dim(state, 3)
    groups = op("Unsqueeze", op.attribute("groups", ir.AttributeType.INT), (0,))
    each = op("Div", heads, groups)  # heads of a group
    step = op("Range", 0, op("Squeeze", seq), 1)  # [S]
    is_real = op("Less", op("Unsqueeze", step, (0,)), op("Unsqueeze", length, (1,)))
    is_real = op("Unsqueeze", is_real, (2,))  # [B, S, 1]

    def by_head(tensor: ir.Value, *split: ir.Value | int, perm: list[int]) -> ir.Value:
        settled = op("Where", is_real, tensor, 0.0)  # a padded step may hold anything
        parts = [part if isinstance(part, ir.Value) else op.constant((part,)) for part in split]
        shape = op("Concat", batch, seq, groups, *parts, axis=0)
        return op("Transpose", op("Reshape", settled, shape, allowzero=1), perm=perm)

    chunk = Chunk(
        x=by_head(x, each, width, perm=[0, 2, 3, 1, 4]),
        dt=by_head(dt, each, 1, perm=[0, 2, 3, 1, 4]),
        b=by_head(b, 1, size, perm=[0, 2, 3, 4, 1]),
        c=by_head(c, 1, size, perm=[0, 2, 3, 1, 4]),
    )
    is_written = op("Unsqueeze", op("Greater", length, 0), (1, 2, 3))
    # A copy, because outputs and new state both read it, and the write may come between.
    copied = op("Where", is_written, state, 0.0)
    column = op("Concat", (1,), groups, each, (1, 1), axis=0)
    y, new = record_chunk(
        op,
        chunk,
        op("Reshape", a, column),
        op("Reshape", skip, column),
        op("Unsqueeze", step, (1,)),
        op("Reshape", copied, op("Concat", batch, groups, each, size, width, axis=0)),
    )
    y = op("Reshape", op("Transpose", y, perm=[0, 3, 1, 2, 4]), op("Shape", x), allowzero=1)
    return y, op("Where", is_written, op("Reshape", new, op("Shape", state)), state)


StateSpaceDual = RecordedFunction(SPEC, _record)
