"""LatentAttention for providers that take no op of ours and no dynamic shape: sizes go in, a
function in standard ops without Shape, Range, If, Slice or Loop comes out, in the absorbed form.

The cache is contiguous, one page a row, and zeroed before its first use: the whole capacity takes
part in the products, with weight zero where a query may not look. `table` is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import Update
from edgewright.custom_ops import int8_rows
from edgewright.custom_ops.contiguous_cache import (
    MASKED,
    StaticSteps,
    append,
    is_real,
    visible,
)
from edgewright.custom_ops.latent_attention.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


@dataclass(frozen=True)
class StaticLatentAttention:
    """One LatentAttention node whose every size is known."""

    batch: int
    seq: int
    capacity: int
    num_heads: int
    rank: int
    rope: int  # of a query and of a key
    nope: int
    value: int
    scale: float
    window: int = 0
    int8_cache: bool = False


def lower_node(found: StaticNode) -> ir.Function:
    heads, (rows, rank) = found.integer("num_heads"), found.shape("up")
    rope = found.size("key_rope")
    nope = found.size("query") // heads - rope
    node = StaticLatentAttention(
        batch=found.batch,
        seq=found.seq,
        capacity=found.capacity,
        num_heads=heads,
        rank=rank,
        rope=rope,
        nope=nope,
        value=rows // heads - nope,
        scale=found.number("scale"),
        window=found.integer("window"),
        int8_cache=found.dtype("cache") == ir.DataType.INT8,
    )
    return lower(node, found.update)


def lower(node: StaticLatentAttention, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: the output and, `in_graph`, the cache with the new tokens; as
    `delta`, the new tokens [batch, seq, rank + rope] instead, of which the caller writes the first
    `length` into the cache that it gives to the next call."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    query, latent, key_rope, up, cache, _, start, length = inputs
    sizes = (node.batch, node.seq, node.capacity, node.window)
    steps = StaticSteps.of(op, sizes, start, length)
    stored = _for_cache(op, node, latent, key_rope, cache)
    if update == "in_graph":
        shape = (node.batch, node.seq, node.rank + node.rope)
        stored = rows = append(op, steps, cache, stored, shape)
    else:
        rows = op("Concat", cache, stored, axis=1)
    output = _attend(op, node, steps, update, query, up, rows)
    output.name = SPEC.outputs[0].name
    stored.name = "cache_out" if update == "in_graph" else "cache_delta"
    graph = op.graph([output, stored], inputs)
    return ir.Function(DOMAIN, f"{SPEC.name}_static", graph=graph, attributes=[])


def _for_cache(
    op: Recorder,
    node: StaticLatentAttention,
    latent: ir.Value,
    key_rope: ir.Value,
    cache: ir.Value,
) -> ir.Value:
    """[B, S, R+Dr] in the cache's dtype."""
    if node.int8_cache:
        latent = int8_rows.encode(op, latent, node.rank)
        return op("Concat", latent, int8_rows.encode(op, key_rope, node.rope), axis=2)
    return op("CastLike", op("Concat", latent, key_rope, axis=2), cache)


def _attend(
    op: Recorder,
    node: StaticLatentAttention,
    steps: StaticSteps,
    update: Update,
    query: ir.Value,
    up: ir.Value,
    rows: ir.Value,
) -> ir.Value:
    heads, width = node.num_heads, node.rank + node.rope
    apart = (node.batch, heads, node.seq, -1)
    together = (node.batch, heads * node.seq, -1)
    weight = op("Reshape", op("CastLike", up, query), (heads, node.nope + node.value, node.rank))
    up_key, up_value = op.several("Split", 2, weight, (node.nope, node.value), axis=1)
    latents, keys = _read(op, node, rows, query)

    scaled = op("Mul", query, node.scale)
    split = op("Reshape", scaled, (node.batch, node.seq, heads, node.nope + node.rope))
    by_head = op("Transpose", split, perm=[0, 2, 1, 3])  # [B, H, S, Dn+Dr]
    nope, rope = op.several("Split", 2, by_head, (node.nope, node.rope), axis=3)
    queries = op("Concat", op("MatMul", nope, up_key), rope, axis=3)
    queries = op("Reshape", queries, (node.batch, heads * node.seq, width))
    scores = op("MatMul", queries, op("Transpose", keys, perm=[0, 2, 1]))  # [B, H*S, T]
    allowed = op("Unsqueeze", visible(op, steps, update), (1,))
    scores = op("Where", allowed, op("Reshape", scores, apart), MASKED)
    weights = op("Reshape", op("Softmax", scores, axis=-1), together)
    mixed = op("Reshape", op("MatMul", weights, latents), apart)  # [B, H, S, R]
    attended = op("MatMul", mixed, op("Transpose", up_value, perm=[0, 2, 1]))
    real = op("Reshape", is_real(op, steps), (node.batch, 1, node.seq, 1))
    settled = op("Transpose", op("Where", real, attended, 0.0), perm=[0, 2, 1, 3])
    return op("Reshape", settled, (node.batch, node.seq, heads * node.value))


def _read(
    op: Recorder, node: StaticLatentAttention, rows: ir.Value, query: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The latents [B, T, R], and with the rotated keys after them [B, T, R+Dr], as float32."""
    sizes = (node.rank, node.rope)
    if node.int8_cache:
        parts = op.several("Split", 2, rows, sizes, axis=2)
        latents, rotated = (int8_rows.decode(op, part) for part in parts)
        return latents, op("Concat", latents, rotated, axis=2)
    keys = op("CastLike", rows, query)
    return op.several("Split", 2, keys, sizes, axis=2)[0], keys
