"""Recorders for bodies of ops that keep a paged cache: start, length and table go in; which cache
places a call writes and reads, and which keys a query sees, come out."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder


@dataclass(frozen=True)
class Steps:
    """What every part of a body needs to know about this call's tokens."""

    first: ir.Value  # [B, 1] tokens already held
    count: ir.Value  # [B, 1] real tokens in this call
    offset: ir.Value  # [1, S]
    batch: ir.Value  # dimensions, one element each
    seq: ir.Value
    page: ir.Value

    @classmethod
    def of(
        cls, op: Recorder, query: ir.Value, start: ir.Value, length: ir.Value, page: ir.Value
    ) -> Steps:
        seq = op.dim(query, 1)
        return cls(
            first=op("Unsqueeze", start, (1,)),
            count=op("Unsqueeze", length, (1,)),
            offset=op("Unsqueeze", op("Range", 0, op("Squeeze", seq), 1), (0,)),
            batch=op.dim(query, 0),
            seq=seq,
            page=page,
        )


def written_places(
    op: Recorder, steps: Steps, table: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """For each step the (row, step) whose token it writes [B, S, 2], and the page [B, S] and slot
    [B, S] that it writes to.

    A padded step repeats the row's last real one, and a row without tokens those of the row
    that has most: identical duplicates, so the order in which they land does not matter.
    """
    real = op("Greater", steps.count, 0)  # [B, 1]
    row = op("Unsqueeze", op("Range", 0, op("Squeeze", steps.batch), 1), (1,))
    row = op("Where", real, row, op("ArgMax", steps.count, axis=0, keepdims=1))
    rows = op("Expand", row, op("Concat", steps.batch, steps.seq, axis=0))
    row = op("Unsqueeze", row, (2,))
    count = op("GatherND", op("Squeeze", steps.count, (1,)), row)  # [B, 1], of the row written
    first = op("GatherND", op("Squeeze", steps.first, (1,)), row)
    source = op("Min", steps.offset, op("Max", op("Sub", count, 1), 0))
    # With no token anywhere, the place is only rewritten with what it holds: keep it in range.
    target = op("Where", op("Greater", count, 0), op("Add", first, source), 0)  # [B, S]

    rows = op("Unsqueeze", rows, (2,))
    entry = op("Unsqueeze", op("Div", target, steps.page), (2,))
    page = op("GatherND", table, op("Concat", rows, entry, axis=2))
    source = op("Concat", rows, op("Unsqueeze", source, (2,)), axis=2)
    return source, page, op("Mod", target, steps.page)


def write(
    op: Recorder, steps: Steps, cache: ir.Value, index: ir.Value, tokens: ir.Value
) -> ir.Value:
    """The cache with tokens of its dtype; the one read of the old cache feeds the write."""
    is_write = op("Greater", op("ReduceMax", steps.count, keepdims=0), 0)
    update = op("Where", is_write, tokens, op("GatherND", cache, index))
    return op("ScatterND", cache, index, update)


def read_places(op: Recorder, steps: Steps, table: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The key positions [1, T] and the page [B, T] and slot [B, T] where they lie.

    Positions past a row's own end repeat its last token: neither stale memory nor table
    entries beyond the row's tokens are looked at.
    """
    held = op("Add", steps.first, steps.count)
    total = op("Max", op("ReduceMax", held, keepdims=0), 1)
    position = op("Unsqueeze", op("Range", 0, total, 1), (0,))
    reading = op("Min", position, op("Max", op("Sub", held, 1), 0))  # [B, T]
    page = op("GatherElements", table, op("Div", reading, steps.page), axis=1)
    return position, page, op("Mod", reading, steps.page)


def visible(op: Recorder, steps: Steps, position: ir.Value) -> ir.Value:
    """[B, S, T]: causal, and inside the attribute `window` when there is one."""
    at = op("Unsqueeze", op("Add", steps.first, steps.offset), (2,))  # [B, S, 1]
    distance = op("Sub", at, op("Unsqueeze", position, (0,)))
    window = op.attribute("window", ir.AttributeType.INT)
    near = op("Or", op("Less", distance, window), op("Equal", window, 0))
    return op("And", op("GreaterOrEqual", distance, 0), near)
