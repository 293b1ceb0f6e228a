"""SelectiveScan for providers that take no op of ours, no Scan and no dynamic shape: sizes go in, a
function of steps written out comes out.

Decays and inputs of all steps are made at once; then either the steps follow each other, or, where
that takes fewer nodes, log2(seq) rounds each join runs of steps twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.states import Update
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.selective_scan.spec import SPEC
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


@dataclass(frozen=True)
class StaticScan:
    """One SelectiveScan node whose every size is known."""

    batch: int
    seq: int
    channels: int
    states: int

    @property
    def doubles(self) -> bool:
        rounds = (self.seq - 1).bit_length()
        return self.seq > 1 and 8 * rounds + 2 < 2 * self.seq + 3  # the nodes of either form


def lower_node(found: StaticNode) -> ir.Function:
    _, states, channels = found.shape("state")
    return lower(StaticScan(found.batch, found.seq, channels, states), found.update)


def lower(node: StaticScan, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: y and, `in_graph`, the state; as `delta`, a new state that the
    caller puts in the place of the old one where `length` is not 0."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    x, dt, a, b, c, state, length = inputs
    batch, seq, channels, states = node.batch, node.seq, node.channels, node.states
    real = op("Less", tuple(range(seq)), op("Reshape", length, (batch, 1)))
    real = op("Reshape", real, (batch, seq, 1))
    # A step that is not real decays by exp(0) and adds 0.
    x, dt, b, c = (op("Where", real, value, 0.0) for value in (x, dt, b, c))
    decay = op("Exp", op("Mul", op("Reshape", dt, (batch, seq, 1, channels)), a))  # [B, S, N, D]
    row, column = (batch, seq, 1, channels), (batch, seq, states, 1)
    added = op("Mul", op("Reshape", x, row), op("Reshape", b, column))
    held = op("Reshape", state, (batch, 1, states, channels))
    form = _doubled if node.doubles else _unrolled
    passed, last = form(op, node, decay, added, held)
    y = op("MatMul", op("Reshape", c, (batch, seq, 1, states)), passed)
    y = op("Reshape", y, (batch, seq, channels))
    new = op("Reshape", last, (batch, states, channels))
    if update == "in_graph":
        is_new = op("Greater", op("Reshape", length, (batch, 1, 1)), 0)
        new = op("Where", is_new, new, state)
    y.name = "y"
    new.name = "state_out" if update == "in_graph" else "state_delta"
    return ir.Function(
        DOMAIN, f"{SPEC.name}_static", graph=op.graph([y, new], inputs), attributes=[]
    )


def _unrolled(
    op: Recorder, node: StaticScan, decay: ir.Value, added: ir.Value, held: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The states after each step [B, S, N, D] and after the last."""
    if node.seq == 1:
        held = op("Add", op("Mul", decay, held), added)
        return held, held
    each = {"axis": 1, "num_outputs": node.seq}
    decays = op.several("Split", node.seq, decay, **each)
    inputs = op.several("Split", node.seq, added, **each)
    passed = []
    for keep, new in zip(decays, inputs, strict=True):
        held = op("Add", op("Mul", keep, held), new)
        passed.append(held)
    return op("Concat", *passed, axis=1), held


def _doubled(
    op: Recorder, node: StaticScan, decay: ir.Value, added: ir.Value, held: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """As above. In each round a step takes over what a run of `run` steps before it made of no
    state at all, by now decayed; `decay` is the decay over such a run, of the steps that have one.
    """
    seq = node.seq

    def cut(value: ir.Value, sizes: tuple[int, int]) -> tuple[ir.Value, ir.Value]:
        first, rest = op.several("Split", 2, value, sizes, axis=1)
        return first, rest

    first_decay, decay = cut(decay, (1, seq - 1))
    first, rest = cut(added, (1, seq - 1))
    passed = op("Concat", op("Add", op("Mul", first_decay, held), first), rest, axis=1)
    run = 1
    while run < seq:
        done, later = cut(passed, (run, seq - run))
        earlier, _ = cut(passed, (seq - run, run))
        passed = op("Concat", done, op("Add", op("Mul", decay, earlier), later), axis=1)
        if 2 * run < seq:
            _, later = cut(decay, (run, seq - 2 * run))
            earlier, _ = cut(decay, (seq - 2 * run, run))
            decay = op("Mul", later, earlier)
        run *= 2
    _, last = cut(passed, (seq - 1, 1))
    return passed, last
