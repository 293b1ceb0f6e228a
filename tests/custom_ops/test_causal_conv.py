"""CausalConv: reference, body, lowering and every instruction set's kernel, each held to a plain
loop in float64 within a bound on what float32 rounding can do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops import torch_ops
from edgewright.custom_ops.causal_conv import reference as torch_reference
from edgewright.custom_ops.causal_conv.lower import StaticConv, lower
from edgewright.custom_ops.compiler import Library
from tests.custom_ops.static_graph import run_static

Array = NDArray[Any]
Inputs = dict[str, Array]
Op = Callable[..., Any]
reference: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch_reference.reference
EPSILON = float(np.finfo(np.float32).eps)

# batch, steps, channels, taps; real steps of each row
SIZES = [
    ((1, 1, 1, 2), (1,)),
    ((2, 1, 3000, 4), (1, 0)),
    ((2, 0, 5, 3), (0, 0)),
    ((3, 2, 33, 4), (2, 1, 0)),
    ((1, 70, 17, 4), (70,)),
    ((4, 33, 100, 3), (33, 0, 1, 32)),
    ((2, 9, 130, 8), (6, 9)),
    ((2, 65, 20, 5), (65, 64)),
    ((1, 3, 19, 11), (3,)),
]
ACTIVATIONS = ["none", "silu"]


def shifted(values: Array) -> Array:
    """The same values, not aligned to any vector."""
    memory = np.empty(values.size + 1, values.dtype)
    memory[1:] = values.ravel()
    return memory[1:].reshape(values.shape)


def inputs(shape: tuple[int, ...], length: tuple[int, ...], seed: int = 0) -> Inputs:
    """What a padded step holds is not a number, and must not be seen."""
    batch, seq, channels, taps = shape
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (batch, seq, channels),
        "weight": (taps, channels),
        "bias": (channels,),
        "state": (batch, taps - 1, channels),
    }
    given = {n: shifted(rng.standard_normal(dims, np.float32)) for n, dims in shapes.items()}
    for row, count in enumerate(length):
        given["x"][row, count:] = np.nan
    return given | {"length": np.array(length)}


def judged(given: Inputs, activation: str) -> tuple[Array, Array, Array]:
    """y in float64, the state, and how far float32 may lie from y."""
    x, weight, bias, state = (array.astype(np.float64) for array in list(given.values())[:4])
    taps = len(weight)
    y, error, new = np.zeros_like(x), np.zeros_like(x), given["state"].copy()
    for row, count in enumerate(given["length"]):
        seen = np.concatenate([state[row], x[row, :count]])
        for t in range(count):
            terms = weight * seen[t : t + taps]
            total = bias + terms.sum(0)
            # Each product and each sum rounds once.
            bound = EPSILON * (taps + 1) / 2 * (abs(bias) + abs(terms).sum(0))
            if activation == "silu":  # nowhere steeper than 1.1; its own steps round a few times
                total = total / (1 + np.exp(-total))
                bound = 1.1 * bound + 4 * EPSILON * abs(total)
            y[row, t], error[row, t] = total, bound
        new[row] = seen[count:].astype(np.float32)
    return y, new, error


def assert_right(found: list[Array], given: Inputs, activation: str, note: str = "") -> None:
    y, new, bound = judged(given, activation)
    assert found[0].shape == y.shape
    excess = abs(found[0] - y) - bound
    assert (excess <= 1e-37).all(), f"{note} {excess.max()}"
    np.testing.assert_array_equal(found[1], new, err_msg=note)
    for row, count in enumerate(given["length"]):
        assert not found[0][row, count:].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel(activation: str, isa: str, library: Library, single_op: Op) -> None:
    for i, (shape, length) in enumerate(SIZES):
        given = inputs(shape, length)
        stored = ("weight", "bias") if i % 2 else ()
        op = single_op("CausalConv", given, {"activation": activation}, stored)
        assert_right(op.run(library, isa, threads=1 + i % 2), given, activation, str(shape))
        op.inputs = given | {"state": shifted(given["state"])}  # which is overwritten
        assert_right(op.run(library, isa, 2, in_place=True), given, activation, str(shape))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_body_and_reference(activation: str, single_op: Op) -> None:
    for shape, length in SIZES:
        given = inputs(shape, length)
        op = single_op("CausalConv", given, {"activation": activation}, symbolic=tuple(given))
        assert_right(op.run(None), given, activation, str(shape))
        op.inputs = given | {"state": given["state"].copy()}
        assert_right(op.run(None, in_place=True), given, activation, str(shape))
        found = reference(*map(torch.from_numpy, given.values()), activation=activation)
        assert_right([value.numpy() for value in found], given, activation, str(shape))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("seq", [1, 2, 8])
def test_lowering(seq: int, activation: str) -> None:
    for taps in (2, 4, 7):
        node = StaticConv(3, seq, 12, taps, activation)
        given = inputs((3, seq, 12, taps), (seq, seq // 2, 0))
        for row, count in enumerate(given["length"]):
            given["x"][row, count:] = 9.0  # a Conv may see padded steps in lanes that it drops
        assert_right(run_static(lower(node), given), given, activation, str(node))
        assert_right(run_static(lower(node, "delta"), given), given, activation, str(node))
        assert lower(node, "delta").outputs[1].name == "state_delta"


def test_the_convolution_is_the_causal_one_of_torch() -> None:
    """A prompt from an empty state, as transformers' mixers pad and cut it."""
    given = inputs((2, 20, 6, 4), (20, 20))
    x, weight, bias, _, length = map(torch.from_numpy, given.values())
    conv = torch.nn.Conv1d(6, 6, 4, groups=6, padding=3)
    conv.weight.data, conv.bias.data = weight.T[:, None], bias  # type: ignore[union-attr]
    theirs = conv(x.transpose(1, 2))[:, :, :20].transpose(1, 2)
    ours = reference(x, weight, bias, torch.zeros(2, 3, 6), length, activation="none")[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_chunks_follow_each_other(isa: str, library: Library, single_op: Op) -> None:
    """17 calls, each with the state that the one before left."""
    whole = inputs((2, 300, 50, 4), (300, 300))
    ends = [0, *sorted(np.random.default_rng(2).permutation(np.arange(1, 299))[:15]), 299, 300]
    state, pieces = whole["state"], []
    op = single_op("CausalConv", whole, {"activation": "silu"}, symbolic=tuple(whole))
    session = op.session(library, isa)
    for first, last in pairwise(ends):
        part = whole | {"x": whole["x"][:, first:last], "state": state}
        y, state = session.run(None, part | {"length": np.array([last - first] * 2)})
        pieces.append(y)
    assert len(pieces) == 17
    assert_right([np.concatenate(pieces, 1), state], whole, "silu")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_stays_in_its_channel(bad: float, isa: str, library: Library, single_op: Op) -> None:
    given = inputs((2, 4, 37, 4), (4, 4))
    given["x"][1, 2, 20] = bad
    y, state = single_op("CausalConv", given, {"activation": "silu"}).run(library, isa)
    assert not np.isfinite(state[1, -2, 20])
    assert np.isfinite(np.delete(y, 20, 2)).all() and np.isfinite(y[0]).all()
    assert np.isfinite(y[1, :2]).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_flow_through_everything(activation: str) -> None:
    given = inputs((2, 5, 3, 4), (5, 3))
    length = torch.from_numpy(given.pop("length"))
    leaves = [torch.from_numpy(np.nan_to_num(a)).double().requires_grad_() for a in given.values()]
    assert torch.autograd.gradcheck(
        lambda *x: reference(*x, length, activation=activation), leaves, fast_mode=True
    )


class _Module(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = torch_ops.causal_conv(*tensors, activation="silu")
        assert isinstance(found, tuple)
        return found


def test_exports_with_dynamic_shapes() -> None:
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq")
    shapes = (({0: batch, 1: seq}, {}, {}, {0: batch}, {0: batch}),)
    tensors = tuple(map(torch.from_numpy, inputs((2, 5, 6, 4), (5, 5)).values()))
    exported = torch.export.export(_Module(), tensors, dynamic_shapes=shapes, strict=False)
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "edgewright.causal_conv.default" in targets
    given = inputs((3, 7, 6, 4), (7, 0, 4))
    found = exported.module()(*map(torch.from_numpy, given.values()))
    assert_right([value.numpy() for value in found], given, "silu")


BAD_INPUTS = {
    "flat x": ("x", (2, 20), "x has 2 dimensions, not 3"),
    "weight the other way": ("weight", (5, 3), "dimension 1 of weight is 3, not 5"),
    "a single tap": ("weight", (1, 5), "weight has 1 taps; 2 or more are required"),
    "no taps": ("weight", (0, 5), "weight has 0 taps"),
    "narrow bias": ("bias", (1,), "dimension 0 of bias is 1, not 5"),
    "other rows of state": ("state", (3, 2, 5), "dimension 0 of state is 3, not 2"),
    "a column more": ("state", (2, 3, 5), "dimension 1 of state is 3, not 2"),
    "narrow state": ("state", (2, 2, 4), "dimension 2 of state is 4, not 5"),
    "other rows of length": ("length", (3,), "dimension 0 of length is 3, not 2"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_kernel_refuses_shapes(name: str, library: Library, single_op: Op) -> None:
    which, shape, message = BAD_INPUTS[name]
    given = inputs((2, 4, 5, 3), (4, 4))
    given[which] = np.zeros(shape, given[which].dtype)
    with pytest.raises(Exception, match=f"CausalConv: .*{message}"):
        single_op("CausalConv", given, {"activation": "none"}).run(library)


@pytest.mark.parametrize("wrong", [-1, 5, 2**62])
def test_kernel_refuses_lengths(wrong: int, library: Library, single_op: Op) -> None:
    given = inputs((2, 4, 5, 3), (4, 4)) | {"length": np.array([4, wrong])}
    with pytest.raises(Exception, match=f"length of row 1 is {wrong}; 0 to 4 is required"):
        single_op("CausalConv", given, {"activation": "none"}).run(library)


def test_an_unknown_activation_is_refused(library: Library, single_op: Op) -> None:
    given = inputs((1, 2, 3, 4), (2,))
    with pytest.raises(Exception, match="unknown activation relu; none or silu"):
        single_op("CausalConv", given, {"activation": "relu"}).run(library)
    with pytest.raises(ExportError, match="unknown activation 'relu'"):
        lower(StaticConv(1, 2, 3, 4, "relu"))
    with pytest.raises(ValueError, match="no activation 'relu'"):
        reference(*map(torch.from_numpy, given.values()), activation="relu")
