"""StateSpaceDual for providers that take no op of ours, no loop and no dynamic shape: sizes go in,
a function of matrix products, chunk after chunk, comes out."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import Update
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.state_space_dual.chunk import Chunk, record_chunk
from edgewright.custom_ops.state_space_dual.spec import SPEC
from edgewright.custom_ops.static_node import StaticNode


@dataclass(frozen=True)
class StaticStateSpace:
    """One StateSpaceDual node whose every size is known."""

    batch: int
    seq: int
    heads: int
    groups: int
    size: int  # N
    width: int  # P
    chunk: int = 64  # steps whose products are taken at once; the work grows with it

    @property
    def each(self) -> int:
        return self.heads // self.groups

    @property
    def chunks(self) -> tuple[int, ...]:
        """The steps of each."""
        whole, rest = divmod(self.seq, self.chunk)
        return (self.chunk,) * whole + ((rest,) if rest else ())


def lower_node(found: StaticNode) -> ir.Function:
    _, heads, size, width = found.shape("state")
    groups = found.integer("groups")
    node = StaticStateSpace(found.batch, found.seq, heads, groups, size, width)
    return lower(node, found.update)


def lower(node: StaticStateSpace, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: y and, `in_graph`, the state; as `delta`, a new state that the
    caller puts in the place of the old one where `length` is not 0."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    x, dt, a, b, c, skip, state, length = inputs
    column = (1, node.groups, node.each, 1, 1)
    a, skip = op("Reshape", a, column), op("Reshape", skip, column)
    count = op("Reshape", length, (node.batch, 1, 1, 1))
    # A copy, so that no reader of the past can come after the write.
    past = op("Where", op("GreaterOrEqual", count, 0), state, 0.0)
    held = op("Reshape", past, (node.batch, node.groups, node.each, node.size, node.width))
    outputs = []
    for part in _split(op, node, x, dt, b, c, length):
        y, held = _run(op, part, a, skip, held)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else op("Concat", *outputs, axis=3)
    y = op("Transpose", y, perm=[0, 3, 1, 2, 4])
    y = op("Reshape", y, (node.batch, node.seq, node.heads * node.width))
    new = op("Reshape", held, (node.batch, node.heads, node.size, node.width))
    if update == "in_graph":
        new = op("Where", op("Greater", count, 0), new, state)
    y.name = "y"
    new.name = "state_out" if update == "in_graph" else "state_delta"
    return ir.Function(
        DOMAIN, f"{SPEC.name}_static", graph=op.graph([y, new], inputs), attributes=[]
    )


@dataclass(frozen=True)
class _Part:
    steps: int
    chunk: Chunk


def _split(
    op: Recorder,
    node: StaticStateSpace,
    x: ir.Value,
    dt: ir.Value,
    b: ir.Value,
    c: ir.Value,
    length: ir.Value,
) -> list[_Part]:
    is_real = op("Less", tuple(range(node.seq)), op("Reshape", length, (node.batch, 1)))
    is_real = op("Reshape", is_real, (node.batch, node.seq, 1))

    def by_head(tensor: ir.Value, heads: int, last: int, perm: list[int]) -> list[ir.Value]:
        settled = op("Where", is_real, tensor, 0.0)
        shape = (node.batch, node.seq, node.groups, heads, last)
        ordered = op("Transpose", op("Reshape", settled, shape), perm=perm)
        if len(node.chunks) == 1:
            return [ordered]
        return list(op.several("Split", len(node.chunks), ordered, node.chunks, axis=perm.index(1)))

    xs = by_head(x, node.each, node.width, [0, 2, 3, 1, 4])
    dts = by_head(dt, node.each, 1, [0, 2, 3, 1, 4])
    bs = by_head(b, 1, node.size, [0, 2, 3, 4, 1])
    cs = by_head(c, 1, node.size, [0, 2, 3, 1, 4])
    parts = zip(node.chunks, xs, dts, bs, cs, strict=True)
    return [_Part(steps, Chunk(*tensors)) for steps, *tensors in parts]


def _run(
    op: Recorder, part: _Part, a: ir.Value, skip: ir.Value, past: ir.Value
) -> tuple[ir.Value, ir.Value]:
    chunk = part.chunk
    if part.steps > 1:
        row = op("Reshape", tuple(range(part.steps)), (part.steps, 1))
        return record_chunk(op, chunk, a, skip, row, past)
    decay = op("Exp", op("Mul", chunk.dt, a))
    added = op("MatMul", chunk.b, op("Mul", chunk.x, chunk.dt))
    new = op("Add", op("Mul", past, decay), added)
    return op("Add", op("MatMul", chunk.c, new), op("Mul", chunk.x, skip)), new
