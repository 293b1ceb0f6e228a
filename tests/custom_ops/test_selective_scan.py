"""SelectiveScan: reference, body, lowering and every instruction set's kernel, each held to a plain
loop in float64 within a bound on what float32 rounding can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from edgewright.custom_ops import torch_ops
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.selective_scan import reference as torch_reference
from edgewright.custom_ops.selective_scan.lower import StaticScan, lower
from tests.custom_ops.static_graph import run_static

Array = NDArray[Any]
Inputs = dict[str, Array]
Op = Callable[..., Any]
reference: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch_reference.reference
STEPPED = ("x", "dt", "b", "c")
EPSILON = float(np.finfo(np.float32).eps)

# batch, steps, channels, states; real steps of each row
SIZES = [
    ((1, 1, 1, 1), (1,)),
    ((2, 1, 70, 16), (1, 0)),
    ((3, 1, 2300, 7), (1, 1, 1)),
    ((2, 0, 5, 3), (0, 0)),
    ((2, 5, 33, 1), (5, 2)),
    ((1, 70, 17, 37), (70,)),
    ((4, 33, 100, 16), (33, 0, 1, 32)),
    ((2, 9, 130, 64), (8, 9)),
]


def inputs(shape: tuple[int, ...], length: tuple[int, ...], seed: int = 0) -> Inputs:
    """What a padded step holds is not a number, and must not be seen."""
    batch, seq, channels, states = shape
    rng = np.random.default_rng(seed)

    def normal(*dims: int) -> Array:
        return shifted(rng.standard_normal(dims, np.float32))

    dt = np.exp(normal(batch, seq, channels))
    rates = rng.permutation(np.geomspace(1e-4, 40, channels * states)).astype(np.float32)
    given = {
        "x": dt * normal(batch, seq, channels),
        "dt": dt,
        "a": shifted(-rates.reshape(states, channels)),
        "b": normal(batch, seq, states),
        "c": normal(batch, seq, states),
        "state": normal(batch, states, channels),
        "length": np.array(length),
    }
    for name in STEPPED:
        for row, count in enumerate(length):
            given[name][row, count:] = np.nan
    return given


def shifted(values: Array) -> Array:
    """The same values, not aligned to any vector."""
    memory = np.empty(values.size + 1, values.dtype)
    memory[1:] = values.ravel()
    return memory[1:].reshape(values.shape)


def judged(given: Inputs) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """y and the state in float64, and how far float32 may lie from each."""
    x, dt, a, b, c, h = (array.astype(np.float64) for array in list(given.values())[:6])
    y = np.zeros_like(x)
    size, error, y_error = abs(h), np.zeros_like(h), np.zeros_like(x)
    states = len(a)
    for row, count in enumerate(given["length"]):
        for t in range(count):
            z = dt[row, t] * a
            decay, new = np.exp(z), b[row, t][:, None] * x[row, t]
            # An exponent is off by a rounding of the rate and one of the product, its power by one
            # more; then a product and a sum: (3 + 2 |z|) e^z <= 3 halves of epsilon in all.
            error[row] = decay * error[row] + EPSILON * (2 * size[row] + 2 * abs(new))
            h[row] = decay * h[row] + new
            size[row] = decay * size[row] + abs(new)
            y[row, t] = c[row, t] @ h[row]
            rounding = EPSILON * (states + 2) / 2 * (abs(c[row, t]) @ size[row])
            y_error[row, t] = abs(c[row, t]) @ error[row] + rounding
    return (y, h), (y_error, error)


def assert_right(found: list[Array], given: Inputs, note: str = "") -> None:
    for got, want, bound in zip(found, *judged(given), strict=True):
        assert got.shape == want.shape
        excess = abs(got - want) - bound
        assert not np.isnan(got).any(), note
        assert (excess <= 1e-30).all(), f"{note} {excess.max()}"  # powers end at 2^-126
    for row, count in enumerate(given["length"]):
        assert not found[0][row, count:].any()
        if count == 0:
            np.testing.assert_array_equal(found[1][row], given["state"][row])


def test_kernel(isa: str, library: Library, single_op: Op) -> None:
    for i, (shape, length) in enumerate(SIZES):
        given = inputs(shape, length)
        op = single_op("SelectiveScan", given, stored=("a",) if i % 2 else ())
        assert_right(op.run(library, isa, threads=1 + i % 2), given, str(shape))
        op.inputs = given | {"state": shifted(given["state"])}  # which is overwritten
        assert_right(op.run(library, isa, 2, in_place=True), given, str(shape))


def test_body_and_reference(single_op: Op) -> None:
    for shape, length in SIZES:
        given = inputs(shape, length)
        op = single_op("SelectiveScan", given, symbolic=tuple(given))
        assert_right(op.run(None), given, str(shape))
        op.inputs = given | {"state": given["state"].copy()}
        assert_right(op.run(None, in_place=True), given, str(shape))
        found = reference(*map(torch.from_numpy, given.values()))
        assert_right([np.asarray(value) for value in found], given, str(shape))


def test_the_body_runs_where_no_rank_is_known(single_op: Op) -> None:
    given = inputs((2, 5, 6, 3), (5, 2))
    model = single_op("SelectiveScan", given).model(body=True)
    for value in model.graph.inputs:
        value.shape = None
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert_right(session.run(None, given), given)


@pytest.mark.parametrize("seq", [1, 2, 5, 15, 16, 33])
def test_lowering(seq: int) -> None:
    node = StaticScan(3, seq, 12, 5)
    given = inputs((3, seq, 12, 5), (seq, seq // 2, 0))
    assert_right(run_static(lower(node), given), given, str(node))
    assert_right(run_static(lower(node, "delta"), given), given, str(node))
    assert lower(node, "delta").outputs[1].name == "state_delta"


def test_a_long_chunk_is_lowered_to_few_nodes() -> None:
    node = StaticScan(1, 64, 8, 4)
    assert node.doubles and not replace(node, seq=15).doubles
    assert len(list(lower(node))) < 110


def test_chunks_follow_each_other(isa: str, library: Library, single_op: Op) -> None:
    """17 calls, each with the state that the one before left."""
    whole = inputs((2, 300, 50, 16), (300, 300))
    ends = [0, *sorted(np.random.default_rng(2).permutation(np.arange(1, 300))[:15]), 299, 300]
    state, pieces = whole["state"], []
    session = single_op("SelectiveScan", whole, symbolic=tuple(whole)).session(library, isa)
    for first, last in pairwise(ends):
        part = {n: whole[n][:, first:last] if n in STEPPED else whole[n] for n in whole}
        part |= {"state": state, "length": np.array([last - first] * 2)}
        y, state = session.run(None, part)
        pieces.append(y)
    assert len(pieces) == 17
    assert_right([np.concatenate(pieces, 1), state], whole)


def test_extreme_decays(isa: str, library: Library, single_op: Op) -> None:
    given = inputs((1, 40, 35, 6), (40,))
    given["a"][:] = np.array([0, -1e-30, -1e-7, -87, -1e4, -3e38])[:, None]
    given["dt"][:, ::3] = 0
    assert_right(single_op("SelectiveScan", given).run(library, isa), given)


def test_a_nan_stays_in_its_channel(isa: str, library: Library, single_op: Op) -> None:
    for name in ("x", "dt", "state"):
        for payload in (0x7FC00000, 0xFFC00001, 0x7FFFFFFF):
            given = inputs((2, 4, 37, 9), (4, 4))
            nan = np.array(payload, np.uint32).view(np.float32)
            given[name][1, 2, 20] = nan
            for found in single_op("SelectiveScan", given).run(library, isa):
                assert np.isnan(found[1, -1, 20]) or name == "state"
                assert not np.isnan(np.delete(found, 20, 2)).any()
                assert not np.isnan(found[0]).any()


def test_gradients_flow_through_everything() -> None:
    given = inputs((2, 5, 3, 2), (5, 3))
    length = torch.from_numpy(given.pop("length"))
    leaves = [torch.from_numpy(np.nan_to_num(a)).double().requires_grad_() for a in given.values()]
    assert torch.autograd.gradcheck(lambda *x: reference(*x, length), leaves, fast_mode=True)


class _Module(torch.nn.Module):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = torch_ops.selective_scan(*tensors)
        assert isinstance(found, tuple)
        return found


def test_exports_with_dynamic_shapes() -> None:
    batch, seq = torch.export.Dim("batch"), torch.export.Dim("seq")
    stepped, row = {0: batch, 1: seq}, {0: batch}
    shapes = ((stepped, stepped, {}, stepped, stepped, row, row),)
    tensors = tuple(map(torch.from_numpy, inputs((2, 5, 6, 3), (5, 5)).values()))
    exported = torch.export.export(_Module(), tensors, dynamic_shapes=shapes, strict=False)
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "edgewright.selective_scan.default" in targets
    given = inputs((3, 7, 6, 3), (7, 0, 4))
    found = exported.module()(*map(torch.from_numpy, given.values()))
    assert_right([np.asarray(value) for value in found], given)


BAD_INPUTS = {
    "flat x": ("x", (2, 20), "x has 2 dimensions, not 3"),
    "narrow dt": ("dt", (2, 4, 4), "dimension 2 of dt is 4, not 5"),
    "other steps of dt": ("dt", (2, 3, 5), "dimension 1 of dt is 3, not 4"),
    "a the other way": ("a", (5, 3), "dimension 1 of a is 3, not 5"),
    "no states": ("a", (0, 5), "at least one state"),
    "other states of b": ("b", (2, 4, 2), "dimension 2 of b is 2, not 3"),
    "other steps of b": ("b", (2, 5, 3), "dimension 1 of b is 5, not 4"),
    "other rows of c": ("c", (1, 4, 3), "dimension 0 of c is 1, not 2"),
    "other rows of state": ("state", (3, 3, 5), "dimension 0 of state is 3, not 2"),
    "state the other way": ("state", (2, 5, 3), "dimension 1 of state is 5, not 3"),
    "narrow state": ("state", (2, 3, 4), "dimension 2 of state is 4, not 5"),
    "other rows of length": ("length", (3,), "dimension 0 of length is 3, not 2"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_kernel_refuses_shapes(name: str, library: Library, single_op: Op) -> None:
    which, shape, message = BAD_INPUTS[name]
    given = inputs((2, 4, 5, 3), (4, 4))
    given[which] = np.zeros(shape, given[which].dtype)
    with pytest.raises(Exception, match=f"SelectiveScan: .*{message}"):
        single_op("SelectiveScan", given).run(library)


@pytest.mark.parametrize("wrong", [-1, 5, 2**62])
def test_kernel_refuses_lengths(wrong: int, library: Library, single_op: Op) -> None:
    given = inputs((2, 4, 5, 3), (4, 4)) | {"length": np.array([4, wrong])}
    with pytest.raises(Exception, match=f"length of row 1 is {wrong}; 0 to 4 is required"):
        single_op("SelectiveScan", given).run(library)
