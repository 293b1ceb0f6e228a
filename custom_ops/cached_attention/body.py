"""CachedAttention as an ONNX function in standard ops: same inputs and outputs as the kernel, so
that a graph runs where no op library does. Its cost follows the tokens held, not the capacity."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.custom_ops.cached_attention.spec import SPEC
from edgewright.custom_ops.recorder import RecordedFunction, Recorder


@dataclass(frozen=True)
class _Steps:
    """What every part of the body needs to know about this call's tokens."""

    first: ir.Value  # [B, 1] tokens already held
    count: ir.Value  # [B, 1] real tokens in this call
    offset: ir.Value  # [1, S]
    heads: ir.Value  # [KV] 0, 1, ...
    batch: ir.Value  # dimensions, one element each
    seq: ir.Value
    kv_heads: ir.Value
    page: ir.Value


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    query, key, value, key_cache, value_cache, table, start, length, sinks = inputs
    seq, kv_heads = op.dim(query, 1), op.dim(key_cache, 1)
    steps = _Steps(
        first=op("Unsqueeze", start, (1,)),
        count=op("Unsqueeze", length, (1,)),
        offset=op("Unsqueeze", op("Range", 0, op("Squeeze", seq), 1), (0,)),
        heads=op("Range", 0, op("Squeeze", kv_heads), 1),
        batch=op.dim(query, 0),
        seq=seq,
        kv_heads=kv_heads,
        page=op.dim(key_cache, 2),
    )
    source, index = _targets(op, steps, table)
    new_key_cache = _append(op, steps, key, key_cache, source, index)
    new_value_cache = _append(op, steps, value, value_cache, source, index)
    position, rows = _reads(op, steps, table)
    keys = _read(op, new_key_cache, rows, query)
    values = _read(op, new_value_cache, rows, query)
    output = _attend(op, steps, query, keys, values, position, sinks)
    return output, new_key_cache, new_value_cache


CachedAttention = RecordedFunction(SPEC, _record)


def _targets(op: Recorder, steps: _Steps, table: ir.Value) -> tuple[ir.Value, ir.Value]:
    """For each step the (row, step) whose token it writes [B, S, 2] and the (page, head, slot)
    that it writes to [B, S, KV, 3].

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
    slot = op("Mod", target, steps.page)
    shape = op("Concat", steps.batch, steps.seq, steps.kv_heads, (1,), axis=0)
    parts = [
        op("Expand", op("Unsqueeze", page, (2, 3)), shape),
        op("Expand", op("Unsqueeze", steps.heads, (0, 1, 3)), shape),
        op("Expand", op("Unsqueeze", slot, (2, 3)), shape),
    ]
    source = op("Concat", rows, op("Unsqueeze", source, (2,)), axis=2)
    return source, op("Concat", *parts, axis=3)


def _append(
    op: Recorder, steps: _Steps, new: ir.Value, cache: ir.Value, source: ir.Value, index: ir.Value
) -> ir.Value:
    """The cache with the new tokens; the one read of the old cache feeds the write."""
    shape = op("Concat", steps.batch, steps.seq, steps.kv_heads, (-1,), axis=0)
    tokens = op("CastLike", op("Reshape", op("GatherND", new, source), shape), cache)
    is_write = op("Greater", op("ReduceMax", steps.count, keepdims=0), 0)
    update = op("Where", is_write, tokens, op("GatherND", cache, index))
    return op("ScatterND", cache, index, update)


def _reads(op: Recorder, steps: _Steps, table: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The key positions [1, T] and where they lie, in rows of the flattened cache [B, KV, T].

    Positions past a row's own end repeat its last token: neither stale memory nor table
    entries beyond the row's tokens are looked at.
    """
    held = op("Add", steps.first, steps.count)
    total = op("Max", op("ReduceMax", held, keepdims=0), 1)
    position = op("Unsqueeze", op("Range", 0, total, 1), (0,))
    reading = op("Min", position, op("Max", op("Sub", held, 1), 0))  # [B, T]
    page = op("GatherElements", table, op("Div", reading, steps.page), axis=1)
    block = op("Mul", op("Unsqueeze", page, (1,)), steps.kv_heads)
    block = op("Add", block, op("Unsqueeze", steps.heads, (1,)))
    slot = op("Unsqueeze", op("Mod", reading, steps.page), (1,))
    return position, op("Add", op("Mul", block, steps.page), slot)


def _read(op: Recorder, cache: ir.Value, rows: ir.Value, like: ir.Value) -> ir.Value:
    """[B, KV, T, D], one copy of the tokens held whatever the page size."""
    flat = op("Reshape", cache, op("Concat", (-1,), op.dim(cache, 3), axis=0))
    return op("CastLike", op("Gather", flat, rows, axis=0), like)


def _attend(
    op: Recorder,
    steps: _Steps,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    position: ir.Value,
    sinks: ir.Value,
) -> ir.Value:
    num_heads = op("Unsqueeze", op.attribute("num_heads", ir.AttributeType.INT), (0,))
    group = op("Div", num_heads, steps.kv_heads)
    split = op("Concat", steps.batch, steps.seq, steps.kv_heads, group, (-1,), axis=0)
    fused = op("Concat", steps.batch, steps.kv_heads, op("Mul", group, steps.seq), (-1,), axis=0)
    apart = op("Concat", steps.batch, steps.kv_heads, group, steps.seq, (-1,), axis=0)

    scaled = op("Mul", query, op.attribute("scale", ir.AttributeType.FLOAT))
    queries = op("Transpose", op("Reshape", scaled, split), perm=[0, 2, 3, 1, 4])
    transposed = op("Transpose", keys, perm=[0, 1, 3, 2])
    scores = op("MatMul", op("Reshape", queries, fused), transposed)
    scores = op("Reshape", _capped(op, scores), apart)  # [B, KV, G, S, T]
    masked = op("Where", _allowed(op, steps, position), scores, float("-inf"))

    sink_shape = op("Concat", (1,), steps.kv_heads, group, (1, 1), axis=0)
    sink = op("Reshape", op("Expand", sinks, num_heads), sink_shape)
    peak = op("Max", op("ReduceMax", masked, (-1,)), sink)
    weights = op("Exp", op("Sub", masked, peak))
    mass = op("Add", op("ReduceSum", weights, (-1,)), op("Exp", op("Sub", sink, peak)))
    attended = op("MatMul", op("Reshape", weights, fused), values)
    attended = op("Div", op("Reshape", attended, apart), mass)  # [B, KV, G, S, Dv]
    # A padded query may have had no key at all: its NaN is dropped here.
    is_real = op("Unsqueeze", op("Less", steps.offset, steps.count), (1, 2, 4))
    settled = op("Where", is_real, attended, 0.0)
    ordered = op("Transpose", settled, perm=[0, 3, 1, 2, 4])  # [B, S, KV, G, Dv]
    return op("Reshape", ordered, op("Concat", steps.batch, steps.seq, (-1,), axis=0))


def _allowed(op: Recorder, steps: _Steps, position: ir.Value) -> ir.Value:
    """[B, 1, 1, S, T]: causal, and inside the window when there is one."""
    at = op("Unsqueeze", op("Add", steps.first, steps.offset), (2,))  # [B, S, 1]
    distance = op("Sub", at, op("Unsqueeze", position, (0,)))
    window = op.attribute("window", ir.AttributeType.INT)
    near = op("Or", op("Less", distance, window), op("Equal", window, 0))
    allowed = op("And", op("GreaterOrEqual", distance, 0), near)
    return op("Unsqueeze", allowed, (1, 2))


def _capped(op: Recorder, scores: ir.Value) -> ir.Value:
    """An If, so that a graph without soft cap does not pay for the tanh of every score."""
    cap = op.attribute("softcap", ir.AttributeType.FLOAT)
    capped, plain = Recorder("capped."), Recorder("plain.")
    tanh = capped("Tanh", capped("Div", scores, cap))
    return op(
        "If",
        op("Greater", cap, 0.0),
        then_branch=capped.graph([capped("Mul", tanh, cap)]),
        else_branch=plain.graph([plain("Identity", scores)]),
    )
