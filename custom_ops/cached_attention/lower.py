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
from edgewright.custom_ops.contiguous_cache import (
    MASKED,
    StaticSteps,
    append,
    is_real,
    visible,
)
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


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


def lower_node(found: StaticNode) -> ir.Function:
    _, kv_heads, _, dim = found.shape("key_cache")
    has_sinks = not found.is_constant("sinks", float("-inf"))
    node = StaticAttention(
        batch=found.batch,
        seq=found.seq,
        capacity=found.capacity,
        num_heads=found.integer("num_heads"),
        kv_heads=kv_heads,
        dim=dim,
        v_dim=found.size("value_cache"),
        scale=found.number("scale"),
        window=found.integer("window"),
        softcap=found.number("softcap"),
        has_sinks=has_sinks,
        int8_cache=found.dtype("key_cache") == ir.DataType.INT8,
    )
    return lower(node, found.update)


def lower(node: StaticAttention, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: the output and, `in_graph`, both caches with the new tokens;
    as `delta`, the new keys and values [batch, kv_heads, seq, dim] instead, of which the caller
    writes the first `length` into the caches that it gives to the next call."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    query, key, value, key_cache, value_cache, _, start, length, sinks = inputs
    sizes = (node.batch, node.seq, node.capacity, node.window)
    steps = StaticSteps.of(op, sizes, start, length)
    stored = [
        _for_cache(op, node, _by_head(op, node, key, node.dim), key_cache, node.dim),
        _for_cache(op, node, _by_head(op, node, value, node.v_dim), value_cache, node.v_dim),
    ]
    if update == "in_graph":
        shape = (node.batch, node.kv_heads, node.seq)
        stored = [
            append(op, steps, key_cache, stored[0], (*shape, node.dim)),
            append(op, steps, value_cache, stored[1], (*shape, node.v_dim)),
        ]
        keys, values = stored
    else:
        keys = op("Concat", key_cache, stored[0], axis=2)
        values = op("Concat", value_cache, stored[1], axis=2)
    keys, values = (
        int8_rows.decode(op, rows) if node.int8_cache else op("CastLike", rows, query)
        for rows in (keys, values)
    )
    outputs = [_attend(op, node, steps, update, query, keys, values, sinks), *stored]
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


def _attend(
    op: Recorder,
    node: StaticAttention,
    steps: StaticSteps,
    update: Update,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
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
    allowed = op("Unsqueeze", visible(op, steps, update), (1, 2))
    scores = op("Where", allowed, scores, MASKED)
    if node.has_sinks:
        # One more key for the softmax, which the values have no row for.
        column = op("Reshape", sinks, (1, node.kv_heads, group, 1, 1))
        column = op("Expand", column, (node.batch, node.kv_heads, group, node.seq, 1))
        scores = op("Concat", scores, column, axis=4)
    weights = op("Softmax", scores, axis=-1)
    if node.has_sinks:
        values = op("Pad", values, (0, 0, 0, 0, 0, 0, 1, 0))
    attended = op("Reshape", op("MatMul", op("Reshape", weights, rows), values), apart)
    real = op("Reshape", is_real(op, steps), (node.batch, 1, 1, node.seq, 1))
    settled = op("Where", real, attended, 0.0)
    ordered = op("Transpose", settled, perm=[0, 3, 1, 2, 4])  # [B, S, KV, G, Dv]
    return op("Reshape", ordered, (node.batch, node.seq, node.num_heads * node.v_dim))
