"""CachedAttention as an ONNX function in standard ops: same inputs and outputs as the kernel, so
that a graph runs where no op library does. Its cost follows the tokens held, not the capacity."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.custom_ops.cached_attention.spec import SPEC
from edgewright.custom_ops.int8_rows import from_cache, is_int8, to_cache
from edgewright.custom_ops.paged_cache import (
    Steps,
    read_places,
    visible,
    write,
    written_places,
)
from edgewright.custom_ops.recorder import RecordedFunction, Recorder


@dataclass(frozen=True)
class _Heads:
    kv: ir.Value  # how many, one element
    index: ir.Value  # [KV] 0, 1, ...


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    query, key, value, key_cache, value_cache, table, start, length, sinks = inputs
    steps = Steps.of(op, query, start, length, page=op.dim(key_cache, 2))
    kv_heads = op.dim(key_cache, 1)
    heads = _Heads(kv_heads, op("Range", 0, op("Squeeze", kv_heads), 1))
    source, page, slot = written_places(op, steps, table)
    index = _targets(op, steps, heads, page, slot)
    quantised = is_int8(op, key_cache)
    new_keys, new_values = (
        to_cache(op, _tokens(op, steps, heads, new, source), quantised) for new in (key, value)
    )
    new_key_cache = write(op, steps, key_cache, index, op("CastLike", new_keys, key_cache))
    new_value_cache = write(op, steps, value_cache, index, op("CastLike", new_values, value_cache))
    position, page, slot = read_places(op, steps, table)
    rows = _rows(op, steps, heads, page, slot)
    keys = from_cache(op, _read(op, new_key_cache, rows), quantised)
    values = from_cache(op, _read(op, new_value_cache, rows), quantised)
    output = _attend(op, steps, heads, query, keys, values, position, sinks)
    return output, new_key_cache, new_value_cache


CachedAttention = RecordedFunction(SPEC, _record)


def _targets(op: Recorder, steps: Steps, heads: _Heads, page: ir.Value, slot: ir.Value) -> ir.Value:
    """The (page, head, slot) that each step writes to [B, S, KV, 3]."""
    shape = op("Concat", steps.batch, steps.seq, heads.kv, (1,), axis=0)
    parts = [
        op("Expand", op("Unsqueeze", page, (2, 3)), shape),
        op("Expand", op("Unsqueeze", heads.index, (0, 1, 3)), shape),
        op("Expand", op("Unsqueeze", slot, (2, 3)), shape),
    ]
    return op("Concat", *parts, axis=3)


def _tokens(op: Recorder, steps: Steps, heads: _Heads, new: ir.Value, source: ir.Value) -> ir.Value:
    """[B, S, KV, D]"""
    shape = op("Concat", steps.batch, steps.seq, heads.kv, (-1,), axis=0)
    return op("Reshape", op("GatherND", new, source), shape)


def _rows(op: Recorder, steps: Steps, heads: _Heads, page: ir.Value, slot: ir.Value) -> ir.Value:
    """Where each head's keys lie, in rows of the flattened cache [B, KV, T]."""
    block = op("Mul", op("Unsqueeze", page, (1,)), heads.kv)
    block = op("Add", block, op("Unsqueeze", heads.index, (1,)))
    return op("Add", op("Mul", block, steps.page), op("Unsqueeze", slot, (1,)))


def _read(op: Recorder, cache: ir.Value, rows: ir.Value) -> ir.Value:
    """[B, KV, T, D], one copy of the tokens held whatever the page size."""
    flat = op("Reshape", cache, op("Concat", (-1,), op.dim(cache, 3), axis=0))
    return op("Gather", flat, rows, axis=0)


def _attend(
    op: Recorder,
    steps: Steps,
    heads: _Heads,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    position: ir.Value,
    sinks: ir.Value,
) -> ir.Value:
    num_heads = op("Unsqueeze", op.attribute("num_heads", ir.AttributeType.INT), (0,))
    group = op("Div", num_heads, heads.kv)
    split = op("Concat", steps.batch, steps.seq, heads.kv, group, (-1,), axis=0)
    fused = op("Concat", steps.batch, heads.kv, op("Mul", group, steps.seq), (-1,), axis=0)
    apart = op("Concat", steps.batch, heads.kv, group, steps.seq, (-1,), axis=0)

    scaled = op("Mul", query, op.attribute("scale", ir.AttributeType.FLOAT))
    queries = op("Transpose", op("Reshape", scaled, split), perm=[0, 2, 3, 1, 4])
    transposed = op("Transpose", keys, perm=[0, 1, 3, 2])
    scores = op("MatMul", op("Reshape", queries, fused), transposed)
    scores = op("Reshape", _capped(op, scores), apart)  # [B, KV, G, S, T]
    allowed = visible(op, steps, position)
    masked = op("Where", op("Unsqueeze", allowed, (1, 2)), scores, float("-inf"))

    sink_shape = op("Concat", (1,), heads.kv, group, (1, 1), axis=0)
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
