"""Rows of int8 that carry their scale: kernel, graph, static graph and torch agree bit for bit, and
with a loop over single numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from edgewright.custom_ops import int8_rows, int8_rows_torch
from edgewright.custom_ops.recorder import Recorder

Array = NDArray[Any]
SIZES = (8, 9, 15, 16, 33, 64, 576)


def rows(size: int) -> Array:
    """From tiny to huge, on the limits between two codes, and no numbers at all."""
    rng = np.random.default_rng(size)
    drawn = rng.standard_normal((300, size), np.float32)
    drawn *= np.exp(rng.uniform(-25, 12, (300, 1))).astype(np.float32)
    exact = np.zeros((256, size), np.float32)
    exact[:, -1] = np.float32(127) * scales()
    above = np.nextafter(exact, np.float32(np.inf))
    named = np.zeros((7, size), np.float32)
    named[1] = 1e-44
    named[2], named[2, 3] = drawn[0], np.nan
    named[3, 5], named[3, -1] = -np.inf, 1.0
    named[4] = np.nan
    named[5] = np.float32(3e38) * np.sign(drawn[0])
    named[6] = np.arange(size) - size // 2 + 0.5  # halves
    return np.concatenate([named, drawn, exact, above])


def scales() -> Array:
    return np.array([2.0 ** (c / 8 - 24) for c in range(256)], np.float32)


def encode_one_by_one(row: Array) -> list[int]:
    values = [np.float32(0) if np.isnan(x) else x for x in row]
    peak = max(abs(x) for x in values)
    fitting = [c for c, s in enumerate(scales()) if peak <= np.float32(127) * s]
    code = fitting[0] if fitting else 255
    found = []
    with np.errstate(over="ignore"):
        for i, x in enumerate(values):
            quotient = x / scales()[code]
            if i < 8:
                bit = np.float32(code >> i & 1)
                half = np.rint((quotient - bit) / np.float32(2))
                found.append(2 * int(np.clip(half, -64, 63)) + int(bit))
            else:
                found.append(int(np.clip(np.rint(quotient), -127, 127)))
    return found


def run(record: Callable[[Recorder, ir.Value], ir.Value], x: Array, dynamic: bool) -> Array:
    op = Recorder()
    kind = ir.TensorType(ir.DataType.from_numpy(x.dtype))
    source = ir.Value(name="x", shape=ir.Shape(["rows", "n"] if dynamic else x.shape), type=kind)
    result = record(op, source)
    is_float = x.dtype == np.float32
    result.type = ir.TensorType(ir.DataType.INT8 if is_float else ir.DataType.FLOAT)
    model = ir.to_proto(ir.Model(op.graph([result], [source]), ir_version=10))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("size", SIZES)
def test_torch_is_what_the_words_say(size: int) -> None:
    x = rows(size)[:: 1 + size // 64]  # a loop over numbers takes its time
    found = int8_rows_torch.encode(torch.from_numpy(x))
    assert found.tolist() == [encode_one_by_one(row) for row in x]
    codes = [sum((byte & 1) << i for i, byte in enumerate(row[:8])) for row in found.tolist()]
    expected = found.numpy().astype(np.float32) * scales()[codes][:, None]
    np.testing.assert_array_equal(int8_rows_torch.decode(found).numpy(), expected)


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("size", SIZES)
def test_graphs(size: int, dynamic: bool) -> None:
    x = rows(size)
    want = int8_rows_torch.encode(torch.from_numpy(x))
    fixed = None if dynamic else size
    found = run(lambda op, value: int8_rows.encode(op, value, fixed), x, dynamic)
    np.testing.assert_array_equal(found, want.numpy())
    back = run(int8_rows.decode, found, dynamic)
    np.testing.assert_array_equal(back, int8_rows_torch.decode(want).numpy())


@pytest.mark.parametrize("size", SIZES)
def test_kernels(size: int, probe: Callable[..., None]) -> None:
    x = rows(size)
    want = int8_rows_torch.encode(torch.from_numpy(x))
    found, back = np.empty(x.shape, np.int8), np.empty_like(x)
    probe("encode_rows", x, found, len(x), size)
    probe("decode_rows", found, back, len(x), size)
    np.testing.assert_array_equal(found, want.numpy())
    np.testing.assert_array_equal(back, int8_rows_torch.decode(want).numpy())


def test_the_error_is_within_half_a_step() -> None:
    """A scale is at most 2^(1/8) larger than needed; the first eight values have steps of two."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((500, 64), np.float32))
    error = (int8_rows_torch.decode(int8_rows_torch.encode(x)) - x).abs()
    step = x.abs().amax(-1, keepdim=True) / 127 * 2 ** (1 / 8)
    assert (error[:, 8:] <= step * 0.5001).all()
    assert (error[:, :8] <= step * 1.0001).all()
