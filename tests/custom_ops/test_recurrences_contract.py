"""StateSpaceDual and GatedDelta against recurrences that others wrote, under torch.export, and
given bad inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.olmo_hybrid import modeling_olmo_hybrid
from transformers.models.qwen3_next import modeling_qwen3_next

from edgewright.custom_ops import OPS, torch_ops
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.onnx_functions import function_for
from tests.custom_ops.recurrences import Call, DeltaCall, StateSpaceCall, stepped

Op = Callable[..., Any]


def tensors(call: Call) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in call.inputs().items()}


def ours(call: Call, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    found = getattr(torch_ops, OPS[call.op].function)(*given.values(), **call.attributes)
    assert isinstance(found, tuple)
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_matches_the_chunks_of_mamba2(groups: int) -> None:
    call = StateSpaceCall(100, 8, groups, 12, 10, (100, 100))
    given = tensors(call)
    x, dt, a, b, c, skip, state, _ = given.values()
    y, after = modeling_mamba2.mamba2_chunk_scan(
        x.unflatten(2, (8, 10)),
        dt,
        a,
        b.unflatten(2, (groups, 12)),
        c.unflatten(2, (groups, 12)),
        chunk_size=32,
        D=skip,
        initial_states=state.mT,
        return_final_states=True,
    )
    found = ours(call, given)
    close(found[0], y.flatten(2))
    close(found[1], after.mT)


@pytest.mark.parametrize("model", [modeling_qwen3_next, modeling_olmo_hybrid])
def test_matches_the_delta_rule_of_others(model: Any) -> None:
    call = DeltaCall(100, 6, 2, 16, 10, (100, 100))
    given = tensors(call)
    query, key, value, decay, beta, state, _ = given.values()
    y, after = model.torch_chunk_gated_delta_rule(
        query.unflatten(2, (2, 16)),
        key.unflatten(2, (2, 16)),
        value.unflatten(2, (6, 10)),
        g=decay,
        beta=beta,
        initial_state=state,
        output_final_state=True,
    )
    found = ours(call, given)
    close(found[0], y.flatten(2))
    close(found[1], after)


def test_matches_the_delta_rule_of_kimi_linear() -> None:
    call = DeltaCall(70, 3, 3, 16, 10, (70, 70), by_channel=True)
    given = tensors(call)
    query, key, value, decay, beta, state, _ = given.values()
    y, after = modeling_kimi_linear.chunk_kimi_delta_attention(
        query.unflatten(2, (3, 16)),
        key.unflatten(2, (3, 16)),
        value.unflatten(2, (3, 10)),
        decay.unflatten(2, (3, 16)),
        beta,
        initial_state=state,
        output_final_state=True,
    )
    found = ours(call, given)
    close(found[0], y.flatten(2))
    close(found[1], after)


SMALL: tuple[Call, ...] = (
    StateSpaceCall(5, 4, 2, 3, 2, (5, 3)),
    DeltaCall(5, 4, 2, 3, 2, (5, 3)),
    DeltaCall(5, 2, 2, 3, 2, (5, 3), by_channel=True),
)


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_gradients_flow_through_everything(call: Call) -> None:
    *floats, length = (torch.nan_to_num(tensor) for tensor in tensors(call).values())
    leaves = [tensor.double().requires_grad_() for tensor in floats]
    op = getattr(torch_ops, OPS[call.op].function)
    run = lambda *x: op(*x, length, **call.attributes)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_gradients_stay_finite_under_strong_decays() -> None:
    call = StateSpaceCall(200, 4, 2, 8, 8, (200, 130), fastest=1e4)
    *floats, length = tensors(call).values()
    leaves = [tensor.clone().requires_grad_() for tensor in floats]
    y, state = torch_ops.state_space_dual(*leaves, length, **call.attributes)
    (y.square().sum() + state.square().sum()).backward()
    assert all(bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_exports_with_dynamic_shapes(call: Call) -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
            return ours(call, dict(enumerate(given)))  # type: ignore[arg-type]

    given = tensors(call)
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq")
    steps = stepped(call.op)
    shapes = tuple(
        {0: batch, 1: seq} if name in steps else {0: batch} if name in ("state", "length") else {}
        for name in given
    )
    exported = torch.export.export(
        Module(), tuple(given.values()), dynamic_shapes=(shapes,), strict=False
    )
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert f"edgewright.{OPS[call.op].function}.default" in targets
    other = {n: t.repeat(2, 3, 1) if n in steps else t for n, t in given.items()}
    other |= {n: torch.cat((given[n], given[n])) for n in ("state", "length")}
    for found, expected in zip(exported.module()(*other.values()), ours(call, other), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("op", ["StateSpaceDual", "GatedDelta"])
def test_the_body_writes_its_state_last(op: str) -> None:
    """Past and new state may be one memory: the last node alone writes, an element at a time."""
    function = function_for(op)
    past = next(value for value in function.inputs if value.name == "state")
    writer = function.outputs[1].producer()
    assert writer is not None and writer.op_type == "Where" and writer.inputs[2] is past
    nodes = list(function)
    assert nodes[-1] is writer
    assert op == "GatedDelta" or "Scan" not in {node.op_type for node in nodes}


STATE_SPACE = StateSpaceCall(4, 6, 2, 3, 5, (4, 2))
DELTA = DeltaCall(4, 6, 2, 3, 5, (4, 2))
BAD_SHAPES = [
    (STATE_SPACE, "x", (2, 30), "x has 2 dimensions, not 3"),
    (STATE_SPACE, "x", (2, 4, 31), "dimension 2 of x is 31, not 30"),
    (STATE_SPACE, "dt", (2, 3, 6), "dimension 1 of dt is 3, not 4"),
    (STATE_SPACE, "dt", (2, 4, 5), "dimension 2 of dt is 5, not 6"),
    (STATE_SPACE, "a", (5,), "dimension 0 of a is 5, not 6"),
    (STATE_SPACE, "b", (2, 4, 3), "dimension 2 of b is 3, not 6"),
    (STATE_SPACE, "c", (1, 4, 6), "dimension 0 of c is 1, not 2"),
    (STATE_SPACE, "skip", (1,), "dimension 0 of skip is 1, not 6"),
    (STATE_SPACE, "state", (2, 6, 15), "state has 3 dimensions, not 4"),
    (STATE_SPACE, "state", (1, 6, 3, 5), "dimension 0 of state is 1, not 2"),
    (STATE_SPACE, "state", (2, 5, 3, 6), "the state has 5 heads, not a multiple of the 2 groups"),
    (STATE_SPACE, "state", (2, 6, 0, 5), "the state has an empty dimension"),
    (STATE_SPACE, "length", (3,), "dimension 0 of length is 3, not 2"),
    (DELTA, "key", (2, 24), "key has 2 dimensions, not 3"),
    (DELTA, "key", (2, 4, 7), "keys of 7 values are no heads of 3"),
    (DELTA, "key", (2, 4, 12), "keys of 12 values are no heads of 3 that divide the 6 value heads"),
    (DELTA, "key", (2, 4, 0), "keys of 0 values are no heads of 3"),
    (DELTA, "query", (2, 4, 9), "dimension 2 of query is 9, not 6"),
    (DELTA, "value", (2, 4, 29), "dimension 2 of value is 29, not 30"),
    (DELTA, "decay", (2, 4, 7), "dimension 2 of decay is 7, not 18"),
    (DELTA, "beta", (2, 4, 1), "dimension 2 of beta is 1, not 6"),
    (DELTA, "state", (2, 6, 3, 0), "the state has an empty dimension"),
    (DELTA, "state", (2, 5, 3, 5), "dimension 1 of state is 5, not 6"),
    (DELTA, "length", (2, 1), "length has 2 dimensions, not 1"),
]


@pytest.mark.parametrize(("call", "which", "shape", "message"), BAD_SHAPES)
def test_kernel_refuses_shapes(
    call: Call, which: str, shape: tuple[int, ...], message: str, library: Library, single_op: Op
) -> None:
    given = call.inputs()
    given[which] = np.zeros(shape, given[which].dtype)
    with pytest.raises(Exception, match=f"{call.op}: {message}"):
        single_op(call.op, given, call.attributes).run(library)


@pytest.mark.parametrize("call", [STATE_SPACE, DELTA], ids=str)
@pytest.mark.parametrize("wrong", [-1, 5, 2**62])
def test_kernel_refuses_lengths(call: Call, wrong: int, library: Library, single_op: Op) -> None:
    given = call.inputs() | {"length": np.array([4, wrong])}
    with pytest.raises(Exception, match=f"length of row 1 is {wrong}, not between 0 and the 4"):
        single_op(call.op, given, call.attributes).run(library)


@pytest.mark.parametrize("value", [0, -2, 4, 2**62])
@pytest.mark.parametrize(("call", "name"), [(STATE_SPACE, "groups"), (DELTA, "num_heads")])
def test_kernel_refuses_attributes(
    call: Call, name: str, value: int, library: Library, single_op: Op
) -> None:
    with pytest.raises(Exception, match=f"{call.op}: "):
        single_op(call.op, call.inputs(), {**call.attributes, name: value}).run(library)
