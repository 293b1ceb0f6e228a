"""Recorders for static lowerings of ops that keep a cache: sizes, start and length go in; the cache
with a call's tokens, and which keys a query sees, come out. Every row's tokens lie together."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import Update
from edgewright.custom_ops.recorder import Recorder

# What a masked score becomes: finite, so that it survives a conversion to float16.
MASKED = -30000.0


@dataclass(frozen=True)
class StaticSteps:
    """This call's tokens, of which a row has `count` after the `first` that it held."""

    batch: int
    seq: int
    capacity: int
    window: int
    first: ir.Value  # [B, 1]
    count: ir.Value  # [B, 1]

    @classmethod
    def of(
        cls,
        op: Recorder,
        sizes: tuple[int, int, int, int],  # batch, seq, capacity, window
        start: ir.Value,
        length: ir.Value,
    ) -> StaticSteps:
        column = (sizes[0], 1)
        return cls(*sizes, op("Reshape", start, column), op("Reshape", length, column))


def append(
    op: Recorder, steps: StaticSteps, cache: ir.Value, new: ir.Value, shape: tuple[int, ...]
) -> ir.Value:
    """The cache [B, ..., capacity, N] with the first `count` steps of `new`, whose `shape` is
    [B, ..., S, N]. As in the bodies: padded steps repeat the last real one, an empty row keeps
    its first slot."""
    axis = len(shape) - 2
    source = op("Min", tuple(range(steps.seq)), op("Max", op("Sub", steps.count, 1), 0))  # [B, S]
    is_write = op("Greater", steps.count, 0)
    target = op("Where", is_write, op("Add", steps.first, source), 0)
    column = tuple(size if i in (0, axis) else 1 for i, size in enumerate(shape))
    source = op("Expand", op("Reshape", source, column), shape)
    target = op("Expand", op("Reshape", target, column), shape)
    tokens = op("GatherElements", new, source, axis=axis)
    kept = op("GatherElements", cache, target, axis=axis)
    is_write = op("Reshape", is_write, (steps.batch, *(1,) * (len(shape) - 1)))
    return op("ScatterElements", cache, target, op("Where", is_write, tokens, kept), axis=axis)


def visible(op: Recorder, steps: StaticSteps, update: Update) -> ir.Value:
    """[B, S, T]: which keys a query looks at, among those of the cache that holds the new ones too,
    or, as `delta`, among those of the cache and the call's own after them."""
    held = tuple(range(steps.capacity))
    if update == "in_graph":
        return _visible(op, steps, steps.first, op("Add", steps.first, steps.count), held)
    old = _visible(op, steps, steps.first, steps.first, held)
    # New tokens count from 0 in this call, and so do its queries.
    zero = op("Sub", steps.first, steps.first)
    new = _visible(op, steps, zero, steps.count, tuple(range(steps.seq)))
    return op("Concat", old, new, axis=2)


def _visible(
    op: Recorder,
    steps: StaticSteps,
    first: ir.Value,
    held: ir.Value,
    positions: tuple[int, ...],
) -> ir.Value:
    """Of the keys at `positions`, of which a row has `held`, for queries from `first` on."""
    at = op("Add", first, tuple(range(steps.seq)))
    distance = op("Sub", op("Reshape", at, (steps.batch, steps.seq, 1)), positions)
    allowed = op("GreaterOrEqual", distance, 0)
    if steps.window:
        allowed = op("And", allowed, op("Less", distance, steps.window))
    exists = op("Less", positions, op("Reshape", held, (steps.batch, 1, 1)))
    return op("And", allowed, exists)


def is_real(op: Recorder, steps: StaticSteps) -> ir.Value:
    """[B, S]"""
    return op("Less", tuple(range(steps.seq)), steps.count)
