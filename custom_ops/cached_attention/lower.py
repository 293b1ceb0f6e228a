"""CachedAttention for providers that take no op of ours and no dynamic shape: sizes go in, a
function in standard ops without Shape, Range, If, Slice or Loop comes out.

The cache is contiguous, one page a row, and zeroed before its first use: the whole capacity takes
part in the products, with weight zero where a query may not look. `table` is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import Update
from edgewright.custom_ops import int8_rows
from edgewright.custom_ops.cached_attention.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN

# What a masked score becomes: finite, so that it survives a conversion to float16.
_MASKED = -30000.0


@dataclass(frozen=True)
class StaticAttention:
    """One CachedAttention node whose every size is known."""

    batch: int
    seq: int
    capacity: int
    num_heads: int
    kv_heads: int
    dim: int
    v_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    has_sinks: bool = False
    int8_cache: bool = False


def lower(node: StaticAttention, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: the output and, `in_graph`, both caches with the new tokens;
    as `delta`, the new keys and values [batch, kv_heads, seq, dim] instead, of which the caller
    writes the first `length` into the caches that it gives to the next call."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    query, key, value, key_cache, value_cache, _, start, length, sinks = inputs
    first = op("Reshape", start, (node.batch, 1))
    count = op("Reshape", length, (node.batch, 1))
    new_keys = _by_head(op, node, key, node.dim)
    new_values = _by_head(op, node, value, node.v_dim)
    if update == "in_graph":
        keys = _scatter(op, node, key_cache, new_keys, node.dim, first, count)
        values = _scatter(op, node, value_cache, new_values, node.v_dim, first, count)
        stored = [keys, values]
        allowed = _allowed(op, node, first, op("Add", first, count), tuple(range(node.capacity)))
    else:
        stored = [
            _for_cache(op, node, new_keys, key_cache, node.dim),
            _for_cache(op, node, new_values, value_cache, node.v_dim),
        ]
        keys = op("Concat", key_cache, stored[0], axis=2)
        values = op("Concat", value_cache, stored[1], axis=2)
        held = _allowed(op, node, first, first, tuple(range(node.capacity)))
        # New tokens count from 0 in this call, and so do its queries.
        zero = op("Sub", first, first)
        new = _allowed(op, node, zero, count, tuple(range(node.seq)))
        allowed = op("Concat", held, new, axis=2)
    keys, values = (
        int8_rows.decode(op, rows) if node.int8_cache else op("CastLike", rows, query)
        for rows in (keys, values)
    )
    outputs = [_attend(op, node, query, keys, values, allowed, count, sinks), *stored]
    names = [tensor.name for tensor in SPEC.outputs]
    for output, name in zip(outputs, names, strict=True):
        output.name = name if update == "in_graph" else name.replace("cache_out", "delta")
    return ir.Function(
        DOMAIN, f"{SPEC.name}_static", graph=op.graph(outputs, inputs), attributes=[]
    )


def _by_head(op: Recorder, node: StaticAttention, new: ir.Value, dim: int) -> ir.Value:
    split = op("Reshape", new, (node.batch, node.seq, node.kv_heads, dim))
    return op("Transpose", split, perm=[0, 2, 1, 3])  # [B, KV, S, D]


def _for_cache(
    op: Recorder, node: StaticAttention, rows: ir.Value, cache: ir.Value, dim: int
) -> ir.Value:
    return int8_rows.encode(op, rows, dim) if node.int8_cache else op("CastLike", rows, cache)


def _scatter(
    op: Recorder,
    node: StaticAttention,
    cache: ir.Value,
    new: ir.Value,
    dim: int,
    first: ir.Value,
    count: ir.Value,
) -> ir.Value:
    """As in the body: padded steps repeat the last real one, an empty row keeps its first slot."""
    source = op("Min", tuple(range(node.seq)), op("Max", op("Sub", count, 1), 0))  # [B, S]
    is_write = op("Greater", count, 0)
    target = op("Where", is_write, op("Add", first, source), 0)
    column, shape = (node.batch, 1, node.seq, 1), (node.batch, node.kv_heads, node.seq, dim)
    source = op("Expand", op("Reshape", source, column), shape)
    target = op("Expand", op("Reshape", target, column), shape)
    tokens = op("GatherElements", new, source, axis=2)
    tokens = _for_cache(op, node, tokens, cache, dim)
    kept = op("GatherElements", cache, target, axis=2)
    is_write = op("Reshape", is_write, (node.batch, 1, 1, 1))
    return op("ScatterElements", cache, target, op("Where", is_write, tokens, kept), axis=2)


def _allowed(
    op: Recorder,
    node: StaticAttention,
    first: ir.Value,
    held: ir.Value,
    positions: tuple[int, ...],
) -> ir.Value:
    """[B, S, T]: which of the keys at `positions`, of which a row has `held`, a query looks at."""
    at = op("Reshape", op("Add", first, tuple(range(node.seq))), (node.batch, node.seq, 1))
    distance = op("Sub", at, positions)
    allowed = op("GreaterOrEqual", distance, 0)
    if node.window:
        allowed = op("And", allowed, op("Less", distance, node.window))
    exists = op("Less", positions, op("Reshape", held, (node.batch, 1, 1)))
    return op("And", allowed, exists)


def _attend(
    op: Recorder,
    node: StaticAttention,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    allowed: ir.Value,
    count: ir.Value,
    sinks: ir.Value,
) -> ir.Value:
    group = node.num_heads // node.kv_heads
    rows = (node.batch, node.kv_heads, group * node.seq, -1)
    apart = (node.batch, node.kv_heads, group, node.seq, -1)
    scaled = op("Mul", query, node.scale)
    scaled = op("Reshape", scaled, (node.batch, node.seq, node.kv_heads, group, node.dim))
    queries = op("Reshape", op("Transpose", scaled, perm=[0, 2, 3, 1, 4]), rows)
    transposed = op("Transpose", keys, perm=[0, 1, 3, 2])
    scores = op("MatMul", queries, transposed)
    if node.softcap:
        scores = op("Mul", op("Tanh", op("Div", scores, node.softcap)), node.softcap)
    scores = op("Reshape", scores, apart)
    scores = op("Where", op("Unsqueeze", allowed, (1, 2)), scores, _MASKED)
    if node.has_sinks:
        # One more key for the softmax, which the values have no row for.
        column = op("Reshape", sinks, (1, node.kv_heads, group, 1, 1))
        column = op("Expand", column, (node.batch, node.kv_heads, group, node.seq, 1))
        scores = op("Concat", scores, column, axis=4)
    weights = op("Softmax", scores, axis=-1)
    if node.has_sinks:
        values = op("Pad", values, (0, 0, 0, 0, 0, 0, 1, 0))
    attended = op("Reshape", op("MatMul", op("Reshape", weights, rows), values), apart)
    is_real = op("Less", tuple(range(node.seq)), count)  # [B, S]
    is_real = op("Reshape", is_real, (node.batch, 1, 1, node.seq, 1))
    settled = op("Where", is_real, attended, 0.0)
    ordered = op("Transpose", settled, perm=[0, 3, 1, 2, 4])  # [B, S, KV, G, Dv]
    return op("Reshape", ordered, (node.batch, node.seq, node.num_heads * node.v_dim))
