"""LatentAttention as an ONNX function in standard ops: same inputs and outputs as the kernel, so
that a graph runs where no op library does. Its cost follows the tokens held, not the capacity.

It takes the cheaper of two forms. Absorbed, a head's queries and its output go through `up` and
attention runs over the latents themselves; expanded, every key and value is made of its latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgewright.custom_ops import int8_rows
from edgewright.custom_ops.latent_attention.spec import SPEC
from edgewright.custom_ops.paged_cache import Steps, read_places, visible, write, written_places
from edgewright.custom_ops.recorder import RecordedFunction, Recorder

_END = (2**62,)  # of a slice


@dataclass(frozen=True)
class _Sizes:
    """One element each."""

    heads: ir.Value
    rank: ir.Value
    rope: ir.Value
    nope: ir.Value  # of a key
    value: ir.Value


@dataclass(frozen=True)
class _Operands:
    """What both forms take."""

    steps: Steps
    sizes: _Sizes
    nope: ir.Value  # [B, H, S, Dn], scaled
    rope: ir.Value  # [B, H, S, Dr], scaled
    latent: ir.Value  # [B, 1, T, R]
    key_rope: ir.Value  # [B, 1, T, Dr]
    up_key: ir.Value  # [H, Dn, R]
    up_value: ir.Value  # [H, Dv, R]
    allowed: ir.Value  # [B, 1, S, T]


def record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    query, latent, key_rope, up, cache, table, start, length = inputs
    steps = Steps.of(op, query, start, length, page=op.dim(cache, 1))
    sizes = _sizes(op, query, latent, key_rope, up)
    source, page, slot = written_places(op, steps, table)
    index = op(
        "Concat", op("Unsqueeze", page, (2,)), op("Unsqueeze", slot, (2,)), axis=2
    )  # [B, S, 2]
    quantised = int8_rows.is_int8(op, cache)
    parts = [int8_rows.to_cache(op, part, quantised) for part in (latent, key_rope)]
    tokens = op("GatherND", op("Concat", *parts, axis=2), source)
    new_cache = write(op, steps, cache, index, op("CastLike", tokens, cache))

    position, page, slot = read_places(op, steps, table)
    flat = op("Reshape", new_cache, op("Concat", (-1,), op.dim(cache, 2), axis=0))
    rows = op("Gather", flat, op("Add", op("Mul", page, steps.page), slot), axis=0)
    parts = [op("Slice", rows, (0,), sizes.rank, (2,)), op("Slice", rows, sizes.rank, _END, (2,))]
    latents, rotated = (
        op("Unsqueeze", int8_rows.from_cache(op, part, quantised), (1,)) for part in parts
    )
    allowed = op("Unsqueeze", visible(op, steps, position), (1,))
    operands = _operands(op, steps, sizes, query, latents, rotated, up, allowed)
    attended = op(
        "If",
        _absorbed_is_cheaper(op, operands),
        then_branch=_branch("absorbed.", operands, _absorbed),
        else_branch=_branch("expanded.", operands, _expanded),
    )
    # A padded query may have had no key at all: its NaN is dropped here.
    is_real = op("Unsqueeze", op("Less", steps.offset, steps.count), (1, 3))
    ordered = op("Transpose", op("Where", is_real, attended, 0.0), perm=[0, 2, 1, 3])
    output = op("Reshape", ordered, op("Concat", steps.batch, steps.seq, (-1,), axis=0))
    return output, new_cache


LatentAttention = RecordedFunction(SPEC, record)


def _sizes(
    op: Recorder, query: ir.Value, latent: ir.Value, key_rope: ir.Value, up: ir.Value
) -> _Sizes:
    heads = op("Unsqueeze", op.attribute("num_heads", ir.AttributeType.INT), (0,))
    rank, rope = op.dim(latent, 2), op.dim(key_rope, 2)
    nope = op("Sub", op("Div", op.dim(query, 2), heads), rope)
    return _Sizes(heads, rank, rope, nope, op("Sub", op("Div", op.dim(up, 0), heads), nope))


def _operands(
    op: Recorder,
    steps: Steps,
    sizes: _Sizes,
    query: ir.Value,
    latents: ir.Value,
    rotated: ir.Value,
    up: ir.Value,
    allowed: ir.Value,
) -> _Operands:
    scaled = op("Mul", query, op.attribute("scale", ir.AttributeType.FLOAT))
    by_head = op("Concat", steps.batch, steps.seq, sizes.heads, (-1,), axis=0)
    queries = op("Transpose", op("Reshape", scaled, by_head), perm=[0, 2, 1, 3])
    by_head = op("Concat", sizes.heads, (-1,), sizes.rank, axis=0)
    ups = op("Reshape", op("CastLike", up, query), by_head)  # [H, Dn+Dv, R]
    return _Operands(
        steps=steps,
        sizes=sizes,
        nope=op("Slice", queries, (0,), sizes.nope, (3,)),
        rope=op("Slice", queries, sizes.nope, _END, (3,)),
        latent=latents,
        key_rope=rotated,
        up_key=op("Slice", ups, (0,), sizes.nope, (1,)),
        up_value=op("Slice", ups, sizes.nope, _END, (1,)),
        allowed=allowed,
    )


def _absorbed_is_cheaper(op: Recorder, o: _Operands) -> ir.Value:
    """Of S queries over T keys, each form's multiplications with those that both make left out:
    S * (T * (2R - Dn - Dv) + R * (Dn + Dv)) < T * R * (Dn + Dv)."""
    total = op.dim(o.latent, 2)
    width = op("Add", o.sizes.nope, o.sizes.value)
    up = op("Mul", o.sizes.rank, width)
    pair = op("Sub", op("Mul", o.sizes.rank, 2), width)
    absorbed = op("Mul", o.steps.seq, op("Add", op("Mul", total, pair), up))
    return op("Squeeze", op("Less", absorbed, op("Mul", total, up)))


def _branch(
    prefix: str, operands: _Operands, form: Callable[[Recorder, _Operands], ir.Value]
) -> ir.Graph:
    op = Recorder(prefix)
    return op.graph([form(op, operands)])


def _absorbed(op: Recorder, o: _Operands) -> ir.Value:
    """All heads share one product with the latents."""
    queries = op("Concat", op("MatMul", o.nope, o.up_key), o.rope, axis=3)  # [B, H, S, R+Dr]
    keys = op("Transpose", op("Concat", o.latent, o.key_rope, axis=3), perm=[0, 1, 3, 2])
    scores = op("MatMul", _together(op, o, queries), keys)  # [B, 1, H*S, T]
    weights = _softmax(op, o, _apart(op, o, scores))
    mixed = op("MatMul", _together(op, o, weights), o.latent)
    return op("MatMul", _apart(op, o, mixed), op("Transpose", o.up_value, perm=[0, 2, 1]))


def _expanded(op: Recorder, o: _Operands) -> ir.Value:
    keys = op("MatMul", o.latent, op("Transpose", o.up_key, perm=[0, 2, 1]))  # [B, H, T, Dn]
    values = op("MatMul", o.latent, op("Transpose", o.up_value, perm=[0, 2, 1]))
    scores = op("MatMul", o.nope, op("Transpose", keys, perm=[0, 1, 3, 2]))
    turned = op("Transpose", o.key_rope, perm=[0, 1, 3, 2])
    rotated = _apart(op, o, op("MatMul", _together(op, o, o.rope), turned))
    return op("MatMul", _softmax(op, o, op("Add", scores, rotated)), values)


def _softmax(op: Recorder, o: _Operands, scores: ir.Value) -> ir.Value:
    return op("Softmax", op("Where", o.allowed, scores, float("-inf")), axis=-1)


def _together(op: Recorder, o: _Operands, x: ir.Value) -> ir.Value:
    """[B, H, S, N] to [B, 1, H*S, N]."""
    rows = op("Mul", o.sizes.heads, o.steps.seq)
    return op("Reshape", x, op("Concat", o.steps.batch, (1,), rows, (-1,), axis=0))


def _apart(op: Recorder, o: _Operands, x: ir.Value) -> ir.Value:
    """[B, 1, H*S, N] to [B, H, S, N]."""
    shape = op("Concat", o.steps.batch, o.sizes.heads, o.steps.seq, (-1,), axis=0)
    return op("Reshape", x, shape)
