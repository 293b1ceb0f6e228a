"""A run of steps and the state before it go in, in standard ops; their outputs and the state after
them come out. What the function body does once for a call, and the lowering for each chunk."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder


@dataclass(frozen=True)
class Chunk:
    """L steps by group and head [B, G, E, L, last], E heads a group; padded steps are zeros."""

    x: ir.Value  # [B, G, E, L, P]
    dt: ir.Value  # [B, G, E, L, 1]
    b: ir.Value  # [B, G, 1, N, L]
    c: ir.Value  # [B, G, 1, L, N]


def record_chunk(
    op: Recorder, chunk: Chunk, a: ir.Value, skip: ir.Value, row: ir.Value, past: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """`a` and `skip` are [1, G, E, 1, 1], `row` is 0, 1, ... [L, 1] and `past` [B, G, E, N, P].

    Every exponent is a sum of logs of its own, where differences of running sums would cancel.
    """
    log = op("Mul", chunk.dt, a)  # [B, G, E, L, 1]
    weighted = op("Mul", chunk.x, chunk.dt)
    column = op("Transpose", row, perm=[1, 0])
    # From the step of a column to that of a row.
    since = op("CumSum", op("Where", op("Greater", row, column), log, 0.0), 3)
    decay = op("Where", op("GreaterOrEqual", row, column), op("Exp", since), 0.0)
    scores = op("Mul", op("MatMul", chunk.c, chunk.b), decay)  # [B, G, E, L, L]
    held = op("Exp", op("CumSum", log, 3))
    y = op("Add", op("MatMul", scores, weighted), op("Mul", op("MatMul", chunk.c, past), held))
    left = op("Exp", op("CumSum", log, 3, exclusive=1, reverse=1))  # at the end of the chunk
    added = op("MatMul", chunk.b, op("Mul", weighted, left))  # [B, G, E, N, P]
    kept = op("Mul", past, op("Exp", op("ReduceSum", log, (3,))))
    return op("Add", y, op("Mul", chunk.x, skip)), op("Add", kept, added)
