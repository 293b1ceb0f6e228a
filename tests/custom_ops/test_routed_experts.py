"""RoutedExperts: reference, body and every instruction set's kernel agree, to float32 rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.packed_weights import WIDTHS, pack
from edgewright.custom_ops.torch_ops import routed_experts
from tests.custom_ops.packed_cases import random_matrix

Array = np.ndarray
Inputs = dict[str, Array]
Op = Callable[..., "SingleOp"]  # type: ignore[name-defined]  # noqa: F821 - from conftest.py

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WEIGHTS = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
ROUTED = ("x", "expert_index", "expert_weight")
ATTRIBUTES = [
    {"activation": "silu", "alpha": 1.702, "limit": 7.0},
    {"activation": "gelu", "alpha": 1.702, "limit": 7.0},
    {"activation": "gelu_tanh", "alpha": 1.702, "limit": 7.0},
    {"activation": "swiglu_clamped", "alpha": 1.3, "limit": 0.9},
    {"activation": "relu_squared", "alpha": 1.702, "limit": 7.0},
]
# experts, choices, H, I
SIZES = [(1, 1, 1, 1), (3, 2, 17, 5), (6, 3, 40, 33), (9, 4, 70, 130), (5, 2, 61, 67)]
TOKENS = [0, 1, 2, 30, 131]


def inputs(
    rng: np.random.Generator, sizes: tuple[int, ...], tokens: int, dtype: str, biased: bool
) -> Inputs:
    experts, choices, width, inner = sizes

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    kind = DTYPES[dtype]
    # The last expert is chosen by nobody, when there is another.
    index = np.stack(
        [rng.permutation(max(experts - 1, 1))[:choices] for _ in range(tokens)]
        or [np.empty(choices)]
    )[:tokens].astype(np.int64)
    return {
        "x": normal(tokens, width) * np.float32(np.sqrt(width)),
        "expert_index": index,
        "expert_weight": rng.random(index.shape, np.float32),
        "gate": normal(experts, inner, width).astype(kind),
        "up": normal(experts, inner, width).astype(kind),
        "down": normal(experts, width, inner).astype(kind),
        "gate_bias": normal(experts, inner) if biased else np.zeros((1, 1), np.float32),
        "up_bias": normal(experts, inner) if biased else np.full((1, 1), 0.5, np.float32),
        "down_bias": normal(experts, width) if biased else np.zeros((1, 1), np.float32),
    }


def reference(given: Inputs, attributes: dict[str, float | str]) -> Array:
    def tensor(array: Array) -> torch.Tensor:  # torch reads no bfloat16 from numpy
        is_whole = np.issubdtype(array.dtype, np.integer)
        return torch.from_numpy(array if is_whole else array.astype(np.float32))

    return np.asarray(routed_experts(*map(tensor, given.values()), **attributes))


# Inputs are scaled so that every value on the way is of order 1.
TOLERANCE = 60 * np.finfo(np.float32).eps


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_kernel_equals_reference(
    dtype: str, isa: str, library: Library, single_op: Op, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for i, sizes in enumerate(SIZES):
        attributes = ATTRIBUTES[i]
        most = inputs(rng, sizes, TOKENS[-1], dtype, biased=i % 2 == 0)
        folder = tmp_path / str(i)
        folder.mkdir()
        misaligned = most["gate"].itemsize * (i % 2)
        op = single_op(
            "RoutedExperts", most, attributes, WEIGHTS, ROUTED, folder, misaligned=misaligned
        )
        session = op.session(library, isa, threads=1 + i % 2)
        for tokens in TOKENS:
            given = {n: a[:tokens] if n in ROUTED else a for n, a in most.items()}
            found = session.run(None, {name: given[name] for name in ROUTED})[0]
            expected = reference(given, attributes)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=str(sizes))


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=lambda a: a["activation"])
@pytest.mark.parametrize("biased", [False, True])
def test_body_equals_reference_and_kernel(
    attributes: dict[str, float | str], biased: bool, library: Library, single_op: Op
) -> None:
    rng = np.random.default_rng(2)
    for tokens, dtype in ((0, "float16"), (1, "float16"), (19, "float32")):
        given = inputs(rng, SIZES[2], tokens, dtype, biased)
        op = single_op("RoutedExperts", given, attributes)
        expected = reference(given, attributes)
        for found in (op.run(None)[0], op.run(library)[0]):
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


# What gate, up and down of some bits say of their columns.
OF_COLUMNS = {
    3: ("scale", "", ""),
    4: ("", "", "order"),
    5: ("scale", "scale", "scale, order"),
    6: ("order", "order", ""),
    8: ("", "order", ""),
}


def packed_stack(
    rng: np.random.Generator, shape: tuple[int, int, int], bits: int, of_columns: str = ""
) -> Array:
    """Two segments, where there are rows for them, of values of about the size of `inputs`'.
    `of_columns`: "scale", "order" or both."""
    experts, rows, columns = shape
    segments = [(rows // 3, WIDTHS[(bits + 1) % 6]), (rows - rows // 3, bits)]
    block = (32, 64, 128)[bits % 3]
    return pack(
        [
            random_matrix(
                rng,
                [segment for segment in segments if segment[0]],
                columns,
                block,
                column_scale="scale" in of_columns,
                column_order="order" in of_columns,
                outliers=0.02,
                exact=True,
            )
            for _ in range(experts)
        ]
    )


def packed_inputs(
    rng: np.random.Generator, sizes: tuple[int, ...], tokens: int, bits: int
) -> Inputs:
    """x is whole int8 steps of a power of two, so that nothing of it is rounded."""
    experts, _, width, inner = sizes
    given = inputs(rng, sizes, tokens, "float32", bits % 2 == 0)
    whole = rng.integers(-127, 128, (tokens, width))
    whole[:, ::32] = 127
    given["x"] = (whole / 2**15).astype(np.float32)
    into, out_of = (experts, inner, width), (experts, width, inner)
    other = WIDTHS[WIDTHS.index(bits) - 1]
    gate, up, down = OF_COLUMNS.get(bits, ("", "", ""))
    given["gate"] = packed_stack(rng, into, bits, gate)
    given["up"] = packed_stack(rng, into, bits, up)
    given["down"] = packed_stack(rng, out_of, other, down)
    return given


def check_packed(found: Array, expected: Array, hidden: int) -> None:
    """Sums are rounded as ever. But one of a token's `hidden` values that lies between two int8
    steps may become either, and then the token's whole result is off by a part of such a step."""
    assert found.shape == expected.shape
    if not found.size:
        return
    error = np.abs(found - expected).max(-1) / (np.abs(expected).max() or 1.0)
    off = error > TOLERANCE
    assert off.sum() <= 1 + 5e-4 * hidden * len(found), error[off]
    assert (error < 0.02).all()


@cache
def packed_cases(bits: int) -> list[tuple[Inputs, dict[str, float | str], list[Array], int]]:
    """Of each size: all inputs, the attributes, what each number of tokens gives, and how many
    hidden values of a token there are. The same for every instruction set."""
    rng, cases = np.random.default_rng(bits), []
    for i, sizes in enumerate(SIZES):
        attributes = ATTRIBUTES[(i + bits) % 5]
        most = packed_inputs(rng, sizes, TOKENS[-1], bits)
        expected = [
            reference({n: a[:tokens] if n in ROUTED else a for n, a in most.items()}, attributes)
            for tokens in TOKENS
        ]
        cases.append((most, attributes, expected, sizes[1] * sizes[3]))
    return cases


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_experts(
    bits: int, isa: str, library: Library, single_op: Op, tmp_path: Path
) -> None:
    for i, (most, attributes, expected, hidden) in enumerate(packed_cases(bits)):
        folder = tmp_path / str(i)
        folder.mkdir()
        op = single_op("RoutedExperts", most, attributes, WEIGHTS, ROUTED, folder, misaligned=i % 2)
        session = op.session(library, isa, threads=1 + i % 2)
        for tokens, wanted in zip(TOKENS, expected, strict=True):
            found = session.run(None, {name: most[name][:tokens] for name in ROUTED})[0]
            check_packed(found, wanted, hidden)


def test_packed_experts_of_another_shape_are_refused(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(8)
    given = packed_inputs(rng, SIZES[2], 3, 3)
    for name, shape in (("up", (6, 32, 40)), ("gate", (5, 33, 40)), ("down", (6, 40, 34))):
        wrong = {**given, name: packed_stack(rng, shape, 4)}
        with pytest.raises(InvalidArgument, match=r"RoutedExperts: (up|down) has to be"):
            single_op("RoutedExperts", wrong, ATTRIBUTES[0]).run(library)


def test_leading_dimensions_and_repeated_choices(library: Library, single_op: Op) -> None:
    rng = np.random.default_rng(3)
    given = inputs(rng, SIZES[1], 6, "float32", True)
    given["expert_index"][:, 1] = given["expert_index"][:, 0]
    shaped = {n: a.reshape(2, 3, -1) if n in ROUTED else a for n, a in given.items()}
    expected = reference(shaped, ATTRIBUTES[0])
    assert expected.shape == (2, 3, 17)
    op = single_op("RoutedExperts", shaped, ATTRIBUTES[0])
    for found in (op.run(None)[0], op.run(library)[0]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("wrong", [-1, 6, 2**62])
def test_an_expert_that_does_not_exist_is_refused(
    wrong: int, library: Library, single_op: Op
) -> None:
    given = inputs(np.random.default_rng(4), SIZES[2], 3, "float32", False)
    given["expert_index"][2, 1] = wrong
    with pytest.raises(
        InvalidArgument, match=rf"expert_index has {wrong}; there are experts 0 to 5"
    ):
        single_op("RoutedExperts", given, ATTRIBUTES[0]).run(library)


MISSHAPEN = {
    "expert_index": (3, 4),
    "expert_weight": (2, 3),
    "gate": (6, 33),
    "up": (6, 32, 40),
    "down": (6, 33, 40),
    "gate_bias": (6, 1),
    "down_bias": (1, 40),
    "x": (3, 41),
}


@pytest.mark.parametrize("name", list(MISSHAPEN))
def test_misfitting_shapes_are_refused(name: str, library: Library, single_op: Op) -> None:
    given = inputs(np.random.default_rng(5), SIZES[2], 3, "float32", True)
    given[name] = np.zeros(MISSHAPEN[name], given[name].dtype)
    with pytest.raises(InvalidArgument, match=r"RoutedExperts: .*; E is"):
        single_op("RoutedExperts", given, ATTRIBUTES[0]).run(library)


def test_an_unknown_activation_is_refused(library: Library, single_op: Op) -> None:
    given = inputs(np.random.default_rng(6), SIZES[1], 1, "float32", False)
    attributes = {**ATTRIBUTES[0], "activation": "relu"}
    with pytest.raises(RuntimeException, match="unknown activation relu"):
        single_op("RoutedExperts", given, attributes).run(library)
