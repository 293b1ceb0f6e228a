"""Ops of packed weights: reference and body against the definition, over every make-up."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.onnx_functions import function_for
from edgewright.custom_ops.packed_reference import packed_product, quantise_rows
from edgewright.custom_ops.packed_weights import (
    BLOCKS,
    WIDTHS,
    QuantizedMatrix,
    pack,
    to_bfloat16,
)
from edgewright.custom_ops.torch_ops import (
    block_gather,
    block_matmul,
    gated_matmul,
    latent_attention,
    routed_experts,
)
from tests.custom_ops.packed_cases import random_matrix
from tests.custom_ops.packed_products import exact_x, stored_x
from tests.custom_ops.test_latent_attention import Case, Sizes

Array = NDArray[Any]
Op = Callable[..., Any]
Bodies = Callable[[str, Array, Array], Array]  # op, what it is given, weight → its output
EPSILON = float(np.finfo(np.float32).eps)

SIZES = [(1, 1), (15, 31), (16, 32), (17, 33), (33, 95), (20, 130), (35, 260)]  # rows, columns
ROWS = [0, 1, 3, 9]


def matrices(bits: int, block: int, exact: bool) -> Iterator[QuantizedMatrix]:
    """Each size has some of the options, so that all of them occur."""
    rng = np.random.default_rng(bits * block)
    options = itertools.product([False, True], [None, 0.03], [0, 1, 2], [False, True])
    for i, (zeros, outliers, kind, scaled) in enumerate(options):
        rows, columns = SIZES[i % len(SIZES)]
        yield random_matrix(
            rng,
            [(rows, bits)],
            columns,
            block,
            kind=kind,
            zeros=zeros,
            outliers=outliers,
            column_scale=scaled,
            column_order=i % 4 < 2,
            half=i % 3 == 0,
            exact=exact,
        )


def rounded(x: Array, matrix: QuantizedMatrix) -> Array:
    """What stored columns are multiplied with, as int8 stand for it, in float64."""
    result, stored = np.zeros(x.shape), stored_x(x, matrix)
    for m, first in itertools.product(range(len(x)), range(0, x.shape[1], matrix.block)):
        own = slice(first, first + matrix.block)
        values = stored[m, own]
        peak = np.abs(values).max()
        if not np.isfinite(values).all():
            result[m] = np.nan
        elif peak >= 2.0**-100:
            whole = np.rint(values * (np.float32(127) / peak)).clip(-127, 127)
            result[m, own] = whole * np.float64(peak / np.float32(127))
    return result


def stored_weight(matrix: QuantizedMatrix) -> Array:
    return QuantizedMatrix(matrix.segments).dequantised().astype(np.float64)


def bound(x: Array, weight: Array) -> Array:
    """Sums within a block are exact. What is rounded: two scales and their products in each block,
    and the sum of the blocks."""
    steps = 5 + x.shape[1] // 32
    return np.abs(x) @ np.abs(weight).T * steps * EPSILON + np.finfo(np.float32).tiny


@pytest.mark.parametrize("bits", WIDTHS)
def test_reference_is_the_definition(bits: int) -> None:
    rng = np.random.default_rng(bits)
    for matrix in matrices(bits, 64, exact=False):
        x = rng.standard_normal((4, matrix.columns)).astype(np.float32)
        x[1] *= np.float32(1e-20)
        x[2] = 0
        exact, weight = rounded(x, matrix), stored_weight(matrix)
        found = packed_product(torch.from_numpy(x), matrix).numpy()
        error = np.abs(found - exact @ weight.T)
        assert (error <= bound(exact, weight)).all()


@pytest.fixture(scope="module")
def bodies(single_op: Op) -> Bodies:
    """An op's body, opened once for inputs of any size; the weight is one of them."""
    sessions: dict[str, ort.InferenceSession] = {}

    def run(name: str, given: Array, blob: Array) -> Array:
        inputs = {OPS[name].inputs[0].name: given, "weight": blob}
        key = f"{name} {given.ndim}"
        if key not in sessions:
            sessions[key] = single_op(name, inputs, symbolic=tuple(inputs)).session(None)
        found: Array = sessions[key].run(None, inputs)[0]
        return found

    return run


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("block", BLOCKS)
def test_body_equals_reference(bits: int, block: int, single_op: Op, bodies: Bodies) -> None:
    """Bit by bit where no scale rounds. A stored weight lets ONNX Runtime compute ahead."""
    rng = np.random.default_rng(bits)
    for i, matrix in enumerate(matrices(bits, block, exact=True)):
        x = exact_x(rng, ROWS[i % len(ROWS)], matrix)
        blob = pack([matrix])
        found = bodies("BlockMatMul", x, blob)
        if i == bits:
            op = single_op("BlockMatMul", {"x": x, "weight": blob}, stored=("weight",))
            np.testing.assert_array_equal(op.run(None)[0], found)
        expected = block_matmul(torch.from_numpy(x), torch.from_numpy(blob)).numpy()
        np.testing.assert_array_equal(found, expected)
        plain = stored_x(x, matrix).astype(np.float64) @ stored_weight(matrix).T
        np.testing.assert_array_equal(found, plain)


def test_body_of_several_segments_and_slabs(single_op: Op) -> None:
    """Of every width and kind; with as many columns as make each strip a slab of its own."""
    rng = np.random.default_rng(0)
    for columns, m in ((300, 5), (9000, 2)):
        segments: tuple[Any, ...] = ()
        for i, bits in enumerate(WIDTHS):
            part = random_matrix(
                rng, [(13 + 9 * i, bits)], columns, 128, kind=i % 3, zeros=i % 2 == 1, outliers=0.01
            )
            segments += part.segments
        scale = to_bfloat16(rng.uniform(0.5, 2, columns))
        matrix = QuantizedMatrix(segments, scale, rng.permutation(columns))
        x = rng.standard_normal((m, columns)).astype(np.float32)
        blob = pack([matrix])
        op = single_op("BlockMatMul", {"x": x, "weight": blob}, stored=("weight",), symbolic=("x",))
        (found,) = op.run(None)
        exact, weight = rounded(x, matrix), stored_weight(matrix)
        assert (np.abs(found - exact @ weight.T) <= bound(exact, weight)).all()
        ids = rng.integers(0, matrix.rows, (3, 11))
        gather = single_op("BlockGather", {"ids": ids, "weight": blob}, stored=("weight",))
        np.testing.assert_array_equal(gather.run(None)[0], matrix.dequantised()[ids])


def test_half_to_even_and_what_is_not_finite(single_op: Op) -> None:
    rng = np.random.default_rng(1)
    matrix = random_matrix(rng, [(20, 4)], 96, 32, exact=True)
    x = np.zeros((6, 96), np.float32)
    x[0, :6] = 127, 0.5, 1.5, -0.5, -2.5, 63.5  # 0, 2, 0, -2, 64
    x[1, 40] = np.nan
    x[2, 90] = -np.inf
    x[3] = 2.0**-101
    x[4, :3] = 3e30
    x[5, :2] = 1e-29, -1e-29
    blob = pack([matrix])
    (found,) = single_op("BlockMatMul", {"x": x, "weight": blob}, stored=("weight",)).run(None)
    expected = block_matmul(torch.from_numpy(x), torch.from_numpy(blob)).numpy()
    np.testing.assert_array_equal(found, expected)
    whole, scales = quantise_rows(torch.from_numpy(x), 32)
    assert whole[0, 0, :6].tolist() == [127, 0, 2, 0, -2, 64]
    assert np.isnan(found[1:3]).all() and not found[3].any() and np.isfinite(found[4]).all()
    assert scales[3].tolist() == [0, 0, 0] and found[5].any()


def test_leading_dimensions_are_kept(single_op: Op) -> None:
    rng = np.random.default_rng(2)
    matrix = random_matrix(rng, [(6, 4)], 40)
    blob = pack([matrix])
    for shape in ((40,), (2, 3, 40), (1, 2, 1, 40), (0, 4, 40)):
        x = rng.standard_normal(shape).astype(np.float32)
        op = single_op("BlockMatMul", {"x": x, "weight": blob}, stored=("weight",))
        expected = block_matmul(torch.from_numpy(x), torch.from_numpy(blob))
        np.testing.assert_allclose(op.run(None)[0], expected, rtol=1e-5, atol=1e-5)


def test_x_of_another_width_is_refused(single_op: Op) -> None:
    blob = pack([random_matrix(np.random.default_rng(3), [(6, 4)], 40)])
    for shape in ((2, 39), (2, 20), (4, 41)):
        op = single_op(
            "BlockMatMul",
            {"x": np.ones(shape, np.float32), "weight": blob},
            stored=("weight",),
            symbolic=("x",),
        )
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            op.run(None)


def test_a_body_divides_by_no_size_of_a_damaged_weight(single_op: Op) -> None:
    whole = pack([random_matrix(np.random.default_rng(3), [(6, 4)], 40)])
    inputs = {"x": np.ones((2, 40), np.float32), "weight": whole}
    session = single_op("BlockMatMul", inputs, symbolic=("weight",)).session(None)
    session.run(None, inputs)
    for at in (8, 16, 20):  # matrices, columns, block
        damaged = whole.copy()
        damaged[at : at + 4] = 0
        with contextlib.suppress(Fail, InvalidArgument):
            session.run(None, {**inputs, "weight": damaged})


@pytest.mark.parametrize("bits", WIDTHS)
def test_gather(bits: int, single_op: Op, bodies: Bodies) -> None:
    rng = np.random.default_rng(bits)
    for i, matrix in enumerate(matrices(bits, BLOCKS[i_of(bits)], exact=False)):
        ids = rng.integers(0, matrix.rows, [(5,), (2, 3), (), (0, 2)][i % 4])
        blob = pack([matrix])
        expected = matrix.dequantised()[ids]
        np.testing.assert_array_equal(bodies("BlockGather", ids, blob), expected)
        if i == bits:
            op = single_op("BlockGather", {"ids": ids, "weight": blob}, stored=("weight",))
            np.testing.assert_array_equal(op.run(None)[0], expected)
        found = block_gather(torch.from_numpy(ids), torch.from_numpy(blob))
        np.testing.assert_array_equal(found, expected)


def i_of(bits: int) -> int:
    return WIDTHS.index(bits) % len(BLOCKS)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gated(activation: str, single_op: Op) -> None:
    rng = np.random.default_rng(4)
    make_up = {"outliers": 0.02, "column_scale": True, "column_order": True}
    matrix = random_matrix(rng, [(20, 5), (14, 3)], 70, **make_up)
    blob = pack([matrix])
    x = (rng.standard_normal((2, 3, 70)) / 20).astype(np.float32)
    given = {"activation": activation}
    op = single_op("GatedMatMul", {"x": x, "weight": blob}, given, stored=("weight",))
    expected = gated_matmul(torch.from_numpy(x), torch.from_numpy(blob), **given)
    np.testing.assert_allclose(op.run(None)[0], expected, rtol=1e-5, atol=1e-5)
    gate, up = block_matmul(torch.from_numpy(x), torch.from_numpy(blob)).chunk(2, -1)
    if activation == "silu":
        np.testing.assert_allclose(expected, gate * torch.sigmoid(gate) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "swiglu_clamped", "relu_squared"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_experts(activation: str, tokens: int, single_op: Op) -> None:
    rng = np.random.default_rng(5)
    experts, width, inner = 4, 40, 70

    def stack(rows: int, columns: int, bits: int) -> Array:
        options: dict[str, Any] = {"outliers": 0.02, "column_scale": bits == 4}
        options["column_order"] = bits != 3
        make = [random_matrix(rng, [(rows, bits)], columns, **options) for _ in range(experts)]
        return pack(make)

    index = np.stack([rng.permutation(experts - 1)[:2] for _ in range(tokens)]).astype(np.int64)
    given = {
        "x": rng.standard_normal((tokens, width)).astype(np.float32),
        "expert_index": index,
        "expert_weight": rng.random(index.shape, np.float32),
        "gate": stack(inner, width, 4),
        "up": stack(inner, width, 3),
        "down": stack(width, inner, 6),
        "gate_bias": rng.standard_normal((experts, inner)).astype(np.float32),
        "up_bias": np.full((1, 1), 0.5, np.float32),
        "down_bias": rng.standard_normal((experts, width)).astype(np.float32),
    }
    attributes = {"activation": activation, "alpha": 1.3, "limit": 0.9}
    op = single_op("RoutedExperts", given, attributes, stored=("gate", "up", "down"))
    expected = routed_experts(*map(torch.from_numpy, given.values()), **attributes).numpy()
    # A hidden value that two ways of adding round apart may be quantised apart: one step of 127.
    tolerance = np.abs(expected).max() / 127
    np.testing.assert_allclose(op.run(None)[0], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_latent_attention(bits: int, single_op: Op) -> None:
    """As with the float32 matrix that the packed one stands for."""
    sizes = Sizes(heads=3, rank=40, rope=6, nope=10, value=7)
    case = Case(sizes, seq=4, start=(0, 9), length=(4, 3))
    given = case.arrays()
    rng = np.random.default_rng(bits)
    make_up = {"outliers": 0.02, "zeros": True, "column_order": bits == 5}
    matrix = random_matrix(rng, [(20, bits), (31, 3)], sizes.rank, **make_up)
    assert matrix.rows == sizes.heads * (sizes.nope + sizes.value)
    packed = {**given, "up": pack([matrix])}
    plain = {**given, "up": matrix.dequantised()}
    found = single_op("LatentAttention", packed, case.attributes, stored=("up",)).run(None)
    expected = single_op("LatentAttention", plain, case.attributes, stored=("up",)).run(None)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    traced = latent_attention(*map(torch.from_numpy, packed.values()), **case.attributes)
    np.testing.assert_allclose(traced[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["BlockMatMul", "RoutedExperts", "LatentAttention", "BlockGather", "GatedMatMul"]
)
def test_bodies_call_nothing_and_hide_no_name(name: str) -> None:
    """ONNX Runtime's optimizer takes a name in a loop for the same one around it."""
    function = function_for(name, "packed" if "W" in OPS[name].types else "")
    assert not [node for node in function.all_nodes() if node.domain == DOMAIN]

    def check(nodes: Iterable[ir.Node], around: frozenset[str | None]) -> None:
        nodes = list(nodes)
        own = [value.name for node in nodes for value in node.outputs]
        assert len(own) == len(set(own)) and not around & set(own)
        for node in nodes:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    check(attribute.as_graph(), around | set(own))

    check(function, frozenset())


def test_a_mapped_weight_stays_mapped(single_op: Op, tmp_path: Path) -> None:
    """No form of it in floats appears beside it, as the runtime opens graphs."""
    rng = np.random.default_rng(6)
    matrix = random_matrix(rng, [(64, 4)], 96)
    x = np.ones((1, 96), np.float32)
    op = single_op(
        "BlockMatMul", {"x": x, "weight": pack([matrix])}, stored=("weight",), folder=tmp_path
    )
    optimized = tmp_path / "optimized.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(tmp_path))
    ort.InferenceSession(
        op.serialized(None),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantFolding"],
    )
    model = onnx.load(optimized, load_external_data=False)
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(t.dims)) for t in floats) < 300
