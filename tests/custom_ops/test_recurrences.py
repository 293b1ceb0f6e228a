"""StateSpaceDual and GatedDelta: reference, body, lowering and every instruction set's kernel, each
held to a plain loop in float64 within a bound on what float32 rounding can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from edgewright.artifacts.states import Update
from edgewright.custom_ops import OPS
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.gated_delta.lower import StaticDelta
from edgewright.custom_ops.gated_delta.lower import lower as lower_delta
from edgewright.custom_ops.state_space_dual.lower import StaticStateSpace
from edgewright.custom_ops.state_space_dual.lower import lower as lower_state_space
from tests.custom_ops.recurrences import (
    Array,
    Call,
    DeltaCall,
    Inputs,
    Judged,
    StateSpaceCall,
    shifted,
    stepped,
)
from tests.custom_ops.static_graph import run_static

Op = Callable[..., Any]

# Lengths on both sides of the kernels' few steps, of their chunks and of the tiles in them; sizes
# that fill vectors and tiles, and that do not.
CALLS: tuple[Call, ...] = (
    StateSpaceCall(1, 1, 1, 1, 1, (1,)),
    StateSpaceCall(0, 2, 1, 3, 4, (0, 0)),
    StateSpaceCall(1, 6, 2, 7, 70, (1, 0, 1)),
    StateSpaceCall(1, 8, 8, 16, 131, (1,), fastest=50),
    StateSpaceCall(6, 8, 1, 12, 19, (6, 1, 0)),
    StateSpaceCall(23, 3, 3, 5, 7, (23, 11, 0), fastest=50),
    StateSpaceCall(64, 8, 8, 9, 16, (64, 63), fastest=1e-3),
    StateSpaceCall(150, 16, 2, 24, 33, (150, 65, 3)),
    StateSpaceCall(131, 20, 1, 37, 40, (131,), fastest=50),
    StateSpaceCall(70, 4, 1, 128, 64, (70,)),
    DeltaCall(1, 1, 1, 1, 1, (1,)),
    DeltaCall(0, 2, 1, 3, 4, (0, 0)),
    DeltaCall(1, 6, 2, 7, 70, (1, 0, 1)),
    DeltaCall(1, 4, 4, 16, 131, (1,), by_channel=True, fastest=50),
    DeltaCall(5, 8, 2, 12, 19, (5, 1, 0), by_channel=True),
    DeltaCall(23, 3, 3, 5, 7, (23, 11, 0), fastest=50),
    DeltaCall(64, 8, 4, 9, 16, (64, 33), fastest=1e-3),
    DeltaCall(75, 5, 1, 24, 33, (75, 32, 3)),
    DeltaCall(70, 5, 5, 37, 40, (70, 31), by_channel=True, fastest=50),
    DeltaCall(66, 2, 1, 128, 64, (66,), repeats=True, fastest=1e-3),
    DeltaCall(66, 2, 2, 64, 48, (66,), by_channel=True, repeats=True, fastest=0.1),
)


@cache
def judged(call: Call) -> tuple[Inputs, Judged]:
    given = call.inputs()
    return given, call.judge(given)


def copied(given: Inputs) -> Inputs:
    """With a state of its own, for a run that overwrites it."""
    return given | {"state": shifted(given["state"])}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_kernel(call: Call, isa: str, library: Library, single_op: Op) -> None:
    given, want = judged(call)
    op = single_op(call.op, given, call.attributes)
    want.assert_right(op.run(library, isa, threads=2), given)
    op.inputs = copied(given)
    want.assert_right(op.run(library, isa, threads=1, in_place=True), given)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_body(call: Call, single_op: Op) -> None:
    given, want = judged(call)
    op = single_op(call.op, given, call.attributes, symbolic=tuple(given))
    want.assert_right(op.run(None), given)
    op.inputs = copied(given)
    want.assert_right(op.run(None, in_place=True), given)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_reference(call: Call) -> None:
    given, want = judged(call)
    module = import_module(f"edgewright.custom_ops.{OPS[call.op].function}.reference")
    found = module.reference(*map(torch.from_numpy, given.values()), **call.attributes)
    want.assert_right([np.asarray(value) for value in found], given)


def lowered(call: Call, update: Update, chunk: int) -> ir.Function:
    if isinstance(call, StateSpaceCall):
        sizes = (call.seq, call.heads, call.groups, call.size, call.width)
        return lower_state_space(StaticStateSpace(len(call.length), *sizes, chunk), update)
    assert isinstance(call, DeltaCall)
    sizes = (call.seq, call.heads, call.key_heads, call.size, call.width)
    scale = float(call.attributes["scale"])
    node = StaticDelta(len(call.length), *sizes, scale, call.by_channel, chunk)
    return lower_delta(node, update)


@pytest.mark.parametrize("update", ["in_graph", "delta"])
@pytest.mark.parametrize("call", [c for c in CALLS if any(c.length)], ids=str)
def test_lowering(call: Call, update: Update) -> None:
    given, want = judged(call)
    for chunk in (64, 24) if update == "in_graph" else (5,):
        function = lowered(call, update, chunk)
        assert function.outputs[1].name == {"in_graph": "state_out", "delta": "state_delta"}[update]
        want.assert_right(run_static(function, given), given, str(chunk))


@pytest.mark.parametrize("op", ["StateSpaceDual", "GatedDelta"])
def test_the_body_runs_where_no_rank_is_known(op: str, single_op: Op) -> None:
    call = next(c for c in CALLS if c.op == op and len(c.inputs()["length"]) == 3)
    given, want = judged(call)
    model = single_op(op, given, call.attributes).model(body=True)
    for value in model.graph.inputs:
        value.shape = None
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    want.assert_right(session.run(None, given), given)


LONG: tuple[Call, ...] = (
    StateSpaceCall(300, 4, 2, 20, 24, (300, 300)),
    DeltaCall(300, 4, 2, 20, 24, (300, 300)),
    DeltaCall(300, 2, 2, 20, 24, (300, 300), by_channel=True),
)


@pytest.mark.parametrize("call", LONG, ids=str)
def test_calls_follow_each_other(call: Call, isa: str, library: Library, single_op: Op) -> None:
    """Calls of all sizes, each with the state that the one before left, equal one call."""
    given, want = judged(call)
    steps = stepped(call.op)
    ends = [0, 1, 2, 9, 16, 17, 34, 35, 101, 165, 172, 299, 300]
    op = single_op(call.op, given, call.attributes, symbolic=tuple(given))
    session = op.session(library, isa)
    state, pieces = given["state"], []
    for first, last in pairwise(ends):
        part = {n: given[n][:, first:last] if n in steps else given[n] for n in given}
        part |= {"state": state, "length": np.array([last - first] * 2)}
        y, state = session.run(None, part)
        pieces.append(y)
    want.assert_right([np.concatenate(pieces, 1), state], given)


@pytest.mark.parametrize("call", LONG, ids=str)
def test_rows_do_not_see_each_other(call: Call, isa: str, library: Library, single_op: Op) -> None:
    """Of rows with few steps, many and none, each comes out bit for bit as it does alone."""
    counts = (4, 0, 70, 300)
    given = replace(call, length=counts).inputs()  # type: ignore[type-var]
    together = single_op(call.op, given, call.attributes).run(library, isa, threads=2)
    for row in range(len(counts)):
        alone = {n: a if n in ("a", "skip") else a[row : row + 1] for n, a in given.items()}
        for one, all_rows in zip(
            single_op(call.op, alone, call.attributes).run(library, isa), together, strict=True
        ):
            np.testing.assert_array_equal(one[0], all_rows[row])


@pytest.mark.parametrize("log", [0.0, -1e-30, -1e-7, -1.0, -87.0, -1e4, -3e38])
@pytest.mark.parametrize("seq", [3, 40])
def test_extreme_decays(log: float, seq: int, isa: str, library: Library, single_op: Op) -> None:
    for call in (
        StateSpaceCall(seq, 3, 1, 6, 20, (seq,)),
        DeltaCall(seq, 3, 1, 6, 20, (seq,)),
        DeltaCall(seq, 3, 3, 6, 20, (seq,), by_channel=True),
    ):
        given = call.inputs()
        if call.op == "StateSpaceDual":
            given["a"][:] = log
            given["dt"][:, ::3] = 0
            given["dt"][:, 1::3] = 1
        else:
            given["decay"][:] = log
            given["decay"][:, ::3] = 0
        found = single_op(call.op, given, call.attributes).run(library, isa)
        call.judge(given).assert_right(found, given, call.op)


@pytest.mark.parametrize("call", [c for c in LONG if isinstance(c, DeltaCall)], ids=str)
def test_no_rate_leaves_the_decay_alone(
    call: DeltaCall, isa: str, library: Library, single_op: Op
) -> None:
    given = replace(call, length=(40, 2), seq=40).inputs()
    given["beta"][:] = 0
    state = single_op(call.op, given, call.attributes).run(library, isa)[1]
    for row, count in enumerate((40, 2)):
        logs: Array = given["decay"][row, :count].astype(np.float64).sum(0)
        left = np.exp(logs).reshape(call.heads, -1, 1)
        np.testing.assert_allclose(state[row], left * given["state"][row], rtol=2e-5, atol=1e-30)
