"""GatedDelta for providers that take no op of ours, no loop and no dynamic shape: sizes go in, a
function of matrix products, chunk after chunk, comes out.

The steps of a chunk depend on each other through a unit triangular system. Its inverse is built
from those of its diagonal blocks, twice as large in each of log2(chunk) rounds: unlike a series of
the matrix's powers, that stays accurate where keys repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import Update
from edgewright.custom_ops.gated_delta.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


@dataclass(frozen=True)
class StaticDelta:
    """One GatedDelta node whose every size is known."""

    batch: int
    seq: int
    heads: int
    key_heads: int
    size: int  # Dk
    width: int  # Dv
    scale: float
    by_channel: bool = False  # one decay for each key channel
    chunk: int = 16  # by channel, a chunk takes chunk * chunk * size values of memory a head

    @property
    def chunks(self) -> tuple[int, ...]:
        """The steps of each."""
        whole, rest = divmod(self.seq, self.chunk)
        return (self.chunk,) * whole + ((rest,) if rest else ())


@dataclass(frozen=True)
class _Chunk:
    """L steps by head; padded steps are zeros."""

    query: ir.Value  # [B, H, L, Dk], scaled
    key: ir.Value  # [B, H, L, Dk]
    value: ir.Value  # [B, H, L, Dv]
    decay: ir.Value  # [B, H, L, 1 or Dk], logs
    beta: ir.Value  # [B, H, L, 1]


def lower_node(found: StaticNode) -> ir.Function:
    _, heads, size, width = found.shape("state")
    node = StaticDelta(
        batch=found.batch,
        seq=found.seq,
        heads=heads,
        key_heads=found.size("key") // size,
        size=size,
        width=width,
        scale=found.number("scale"),
        by_channel=found.size("decay") != heads,
    )
    return lower(node, found.update)


def lower(node: StaticDelta, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: y and, `in_graph`, the state; as `delta`, a new state that the
    caller puts in the place of the old one where `length` is not 0."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    state, length = inputs[5:]
    count = op("Reshape", length, (node.batch, 1, 1, 1))
    # A copy, so that no reader of the past can come after the write.
    held = op("Where", op("GreaterOrEqual", count, 0), state, 0.0)
    outputs = []
    for steps, chunk in zip(node.chunks, _split(op, node, inputs[:5], length), strict=True):
        y, held = _step(op, chunk, held) if steps == 1 else _run(op, node, steps, chunk, held)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else op("Concat", *outputs, axis=2)
    y = op("Transpose", y, perm=[0, 2, 1, 3])
    y = op("Reshape", y, (node.batch, node.seq, node.heads * node.width))
    new = held
    if update == "in_graph":
        new = op("Where", op("Greater", count, 0), held, state)
    y.name = "y"
    new.name = "state_out" if update == "in_graph" else "state_delta"
    return ir.Function(
        DOMAIN, f"{SPEC.name}_static", graph=op.graph([y, new], inputs), attributes=[]
    )


def _split(
    op: Recorder, node: StaticDelta, inputs: list[ir.Value], length: ir.Value
) -> list[_Chunk]:
    query, key, value, decay, beta = inputs
    is_real = op("Less", tuple(range(node.seq)), op("Reshape", length, (node.batch, 1)))
    is_real = op("Reshape", is_real, (node.batch, node.seq, 1))

    def by_head(tensor: ir.Value, heads: int, last: int) -> list[ir.Value]:
        settled = op("Where", is_real, tensor, 0.0)
        split = op("Reshape", settled, (node.batch, node.seq, heads, last))
        ordered = op("Transpose", split, perm=[0, 2, 1, 3])
        if heads < node.heads:  # value heads side by side use one key head
            apart = op("Reshape", ordered, (node.batch, heads, 1, node.seq, last))
            shape = (node.batch, heads, node.heads // heads, node.seq, last)
            repeated = op("Expand", apart, shape)
            ordered = op("Reshape", repeated, (node.batch, node.heads, node.seq, last))
        if len(node.chunks) == 1:
            return [ordered]
        return list(op.several("Split", len(node.chunks), ordered, node.chunks, axis=2))

    parts = zip(
        by_head(op("Mul", query, node.scale), node.key_heads, node.size),
        by_head(key, node.key_heads, node.size),
        by_head(value, node.heads, node.width),
        by_head(decay, node.heads, node.size if node.by_channel else 1),
        by_head(beta, node.heads, 1),
        strict=True,
    )
    return [_Chunk(*tensors) for tensors in parts]


def _step(op: Recorder, chunk: _Chunk, past: ir.Value) -> tuple[ir.Value, ir.Value]:
    decay = op("Transpose", op("Exp", chunk.decay), perm=[0, 1, 3, 2])  # [B, H, 1 or Dk, 1]
    kept = op("Mul", past, decay)
    change = op("Mul", op("Sub", chunk.value, op("MatMul", chunk.key, kept)), chunk.beta)
    column = op("Transpose", chunk.key, perm=[0, 1, 3, 2])
    new = op("Add", kept, op("Mul", column, change))
    return op("MatMul", chunk.query, new), new


def _run(
    op: Recorder, node: StaticDelta, steps: int, chunk: _Chunk, past: ir.Value
) -> tuple[ir.Value, ir.Value]:
    key, query, log = chunk.key, chunk.query, chunk.decay
    held = op("Exp", op("CumSum", log, 2))
    decay = _decays(op, node, steps, log)
    system = op("Mul", _products(op, node, steps, key, key, decay), chunk.beta)
    known = op("MatMul", op("Mul", key, held), past)
    change = op("Mul", op("Sub", chunk.value, known), chunk.beta)
    change = op("MatMul", _inverse(op, steps, system), change)  # [B, H, L, Dv]
    mixing = _products(op, node, steps, query, key, decay)
    y = op("Add", op("MatMul", op("Mul", query, held), past), op("MatMul", mixing, change))

    left = op("Exp", op("CumSum", log, 2, exclusive=1, reverse=1))  # at the end of the chunk
    lasting = op("Transpose", op("Mul", key, left), perm=[0, 1, 3, 2])
    total = op("Exp", op("ReduceSum", log, (2,)))  # [B, H, 1, 1 or Dk]
    kept = op("Mul", past, op("Transpose", total, perm=[0, 1, 3, 2]))
    return y, op("Add", kept, op("MatMul", lasting, change))


def _decays(op: Recorder, node: StaticDelta, steps: int, log: ir.Value) -> ir.Value:
    """[B, H, L, L, 1 or Dk], from the step of a column to that of a row; zero for a later column.
    Each exponent is a sum of its own, where differences of running sums would cancel."""
    channels = node.size if node.by_channel else 1
    row = op("Reshape", tuple(range(steps)), (steps, 1, 1))
    column = op("Reshape", tuple(range(steps)), (steps, 1))
    logs = op("Reshape", log, (node.batch, node.heads, steps, 1, channels))
    since = op("CumSum", op("Where", op("Greater", row, column), logs, 0.0), 2)
    return op("Where", op("GreaterOrEqual", row, column), op("Exp", since), 0.0)


def _products(
    op: Recorder, node: StaticDelta, steps: int, rows: ir.Value, columns: ir.Value, decay: ir.Value
) -> ir.Value:
    """[B, H, L, L]: rows and columns multiplied channel by channel, with the decay between them."""
    if not node.by_channel:
        products = op("MatMul", rows, op("Transpose", columns, perm=[0, 1, 3, 2]))
        return op("Mul", products, op("Squeeze", decay, (4,)))
    shape = (node.batch, node.heads, steps, 1, node.size)
    faded = op("Mul", decay, op("Reshape", columns, (node.batch, node.heads, 1, steps, node.size)))
    return op("ReduceSum", op("Mul", op("Reshape", rows, shape), faded), (4,), keepdims=0)


def _inverse(op: Recorder, steps: int, system: ir.Value) -> ir.Value:
    """Of the unit triangular matrix that has `system` below its diagonal.

    With P and Q the inverses of two neighbouring diagonal blocks and R what lies below the first,
    that of both together has -Q R P in R's place.
    """
    inverse = _matrix(op, steps, lambda i, j: i == j)
    block = 1
    while block < steps:
        joined = _matrix(op, steps, _below(block))
        between = op("Mul", system, joined)
        inverse = op("Sub", inverse, op("MatMul", op("MatMul", inverse, between), inverse))
        block *= 2
    return inverse


def _below(block: int) -> Callable[[int, int], bool]:
    """Whether a place lies below the first block of a pair and beside the second."""
    return lambda i, j: i // block == j // block + 1 and i // block % 2 == 1


def _matrix(op: Recorder, steps: int, is_one: Callable[[int, int], bool]) -> ir.Value:
    values = tuple(float(is_one(i, j)) for i in range(steps) for j in range(steps))
    return op("Reshape", values, (steps, steps))
