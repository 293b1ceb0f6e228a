"""Packed weights: golden bytes, round trips over every make-up, and blobs that are not in order."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError, PackageError
from edgewright.custom_ops.packed_layout import Segment
from edgewright.custom_ops.packed_weights import (
    BLOCKS,
    MOST_SHIFT,
    WIDTHS,
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
    pack,
    packed_bytes,
    packed_bytes_of,
    read_layout,
    to_bfloat16,
    unpack,
)
from tests.custom_ops.packed_cases import random_matrix, random_rows

Array = NDArray[Any]
SIZES = [(1, 1), (15, 31), (16, 32), (17, 33), (33, 95), (5, 130), (50, 260)]


def same(a: QuantizedMatrix, b: QuantizedMatrix) -> None:
    for left, right in zip(a.segments, b.segments, strict=True):
        for field in dataclasses.fields(QuantizedRows):
            one, other = getattr(left, field.name), getattr(right, field.name)
            if field.name == "outliers" and one is not None:
                order = np.lexsort((one.columns, one.rows)), np.lexsort((other.columns, other.rows))
                for name in ("rows", "columns", "values"):
                    ours, theirs = getattr(one, name)[order[0]], getattr(other, name)[order[1]]
                    np.testing.assert_array_equal(ours, theirs)
            else:
                np.testing.assert_array_equal(one, other, err_msg=field.name)
    np.testing.assert_array_equal(a.column_scale, b.column_scale)
    np.testing.assert_array_equal(a.column_order, b.column_order)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_round_trip(bits: int, block: int, kind: int) -> None:
    rng = np.random.default_rng(bits)
    makes = itertools.product([False, True], [None, 0.05], [False, True], [False, True], [1, 3])
    for size, (zeros, outliers, column_scale, column_order, stack) in zip(
        itertools.cycle(SIZES), makes, strict=False
    ):
        rows, columns = size
        matrices = [
            random_matrix(
                rng,
                [(rows, bits)],
                columns,
                block,
                kind=kind,
                zeros=zeros,
                outliers=outliers,
                column_scale=column_scale,
                column_order=column_order,
                half=rows % 2 == 0,
            )
            for _ in range(stack)
        ]
        blob = pack(matrices)
        found = unpack(blob)
        for expected, matrix in zip(matrices, found, strict=True):
            same(expected, matrix)
        np.testing.assert_array_equal(pack(found), blob)
        listed = [m.segments[0].outliers for m in matrices]
        count = None if listed[0] is None else sum(len(o) for o in listed if o is not None)
        options: Any = {"zeros": zeros, "scale_kind": kind, "column_scale": column_scale}
        size_of_blob = packed_bytes(
            rows, columns, block, bits, outliers=count, stack=stack, **options
        )
        orders = stack * (-(-4 * columns // 64) * 64) if column_order else 0
        assert blob.size == size_of_blob + orders


def test_segments_of_every_width_and_kind() -> None:
    rng = np.random.default_rng(0)

    def matrix() -> QuantizedMatrix:
        segments = tuple(
            random_rows(rng, 7 + 5 * i, 100, bits, 64, kind=i % 3, zeros=i % 2 == 0, outliers=0.02)
            for i, bits in enumerate(WIDTHS)
        )
        return QuantizedMatrix(segments, to_bfloat16(rng.uniform(0.5, 2, 100)))

    matrices = [matrix(), matrix()]
    blob = pack(matrices)
    for expected, found in zip(matrices, unpack(blob), strict=True):
        same(expected, found)
        np.testing.assert_array_equal(expected.dequantised(), found.dequantised())
    layout = read_layout(blob)
    assert (layout.rows, layout.columns, layout.stack) == (matrices[0].rows, 100, 2)
    segments = [s.segment for s in matrices[0].segments]
    sized = packed_bytes_of(segments, 100, 64, outliers=layout.outliers, column_scale=True, stack=2)
    assert sized == blob.size
    assert segments[0] == Segment(7, 2, True, 0, 3)


@pytest.mark.parametrize("bits", WIDTHS)
def test_each_bit_of_a_code_has_its_place(bits: int) -> None:
    """The specification's own drawing, one bit at a time."""

    def place(i: int, bit: int) -> tuple[int, int]:
        """The vector, and the bit in its bytes, of a quad's bit."""
        match bits:
            case 2 | 4 | 8:
                per = 8 // bits
                return i // per, bits * (i % per) + bit
            case 3 if i < 6:
                return i // 2, 3 * (i % 2) + bit
            case 3:
                return (i - 6, 6 + bit) if bit < 2 else (2, i)
            case 5:
                return (i // 2, 4 * (i % 2) + bit) if bit < 4 else (4, i)
        first, j = 3 * (i // 4), i % 4
        return (first + j, bit) if j < 3 else (first + bit // 2, 6 + bit % 2)

    ones = np.full((1, 1), 1, np.uint8)
    for column, row, bit in itertools.product(range(32), (0, 3, 15), range(bits)):
        codes = np.zeros((16, 32), np.uint8)
        codes[row, column] = 1 << bit
        scale, scale_codes = np.ones(16, np.float32), np.repeat(ones, 16, axis=0)
        rows = QuantizedRows(bits, 32, codes, 0, scale, scale_codes)
        blob = pack([QuantizedMatrix((rows,))])
        vector, at = place(column // 4, bit)
        expected = np.zeros(64 * bits, np.uint8)
        expected[64 * vector + 4 * row + column % 4] = 1 << at
        np.testing.assert_array_equal(blob[128 : 128 + 64 * bits], expected)


def test_golden_bytes() -> None:
    """A whole blob as it was first written: packages on devices hold these bytes."""
    codes = (np.arange(2 * 40, dtype=np.uint8) % 7).reshape(2, 40)
    outliers = Outliers(np.array([1, 0]), np.array([39, 2]), np.array([-32, 31], np.int8))
    rows = QuantizedRows(
        3,
        32,
        codes,
        0,
        np.array([0.5, 1.5], np.float32),
        np.array([[1, 2], [3, 255]], np.uint8),
        zeros=np.array([[4, 3], [2, 1]], np.uint8),
        shift=2,
        outliers=outliers,
    )
    blob = pack([QuantizedMatrix((rows,), to_bfloat16(np.linspace(1, 2, 40)))])
    table = struct.pack("<8IQQ16x", 0x4D505745, 1, 1, 2, 40, 32, 1, 3, blob.size, 2)
    table += struct.pack("<I4B8x", 2, 3, 1, 0, 2)
    assert blob[: len(table)].tobytes() == table
    scales = blob[128 : 128 + 80].view("<u2")
    assert scales[0] == 0x3F80 and scales[-1] == 0x4000
    meta = blob[128 + 128 + 2 * 3 * 64 :]
    assert meta[:6].tobytes() == struct.pack("<3H", 0x3F00, 0x3FC0, 0)
    assert [meta[32], meta[33], meta[48], meta[49]] == [1, 3, 2, 255]  # [block][row]
    assert [meta[64], meta[65], meta[80], meta[81]] == [4, 2, 3, 1]
    assert meta[96:102].tobytes() == struct.pack("<IBB", 0, 2, 0)
    assert blob[-64:-60].tobytes() == struct.pack("<2H", 63 << 10 | 2 << 4, 39 << 4 | 1)
    digest = hashlib.sha256(blob.tobytes()).hexdigest()
    assert digest == GOLDEN, digest


GOLDEN = "ee6206a2f4375288ce757a648d5f3f5094803698d68f7b645b591940ed8ee24d"


@pytest.mark.parametrize("scale", [None, np.ones(70, np.float32)])
def test_a_column_order_lies_before_the_codes(scale: Array | None) -> None:
    rows = tuple(valid(zeros=True, outliers=0.1) for _ in range(2))
    stack = [QuantizedMatrix(rows, scale)] * 3
    plain = pack(stack)
    orders = [np.random.default_rng(i).permutation(70) for i in range(3)]
    blob = pack([dataclasses.replace(stack[0], column_order=order) for order in orders])
    step, at = read_layout(plain).section_bytes, 0 if scale is None else 192
    sections = blob[128 : 128 + 3 * (step + 320)].reshape(3, step + 320)
    for section, order in zip(sections, orders, strict=True):
        np.testing.assert_array_equal(section[at : at + 280].view("<u4"), order)
    left = np.delete(sections, np.s_[at : at + 320], axis=1)
    np.testing.assert_array_equal(left.reshape(-1), plain[128 : 128 + 3 * step])
    np.testing.assert_array_equal(blob[128 + sections.size :], plain[128 + left.size :])


def test_dequantised_values() -> None:
    rng = np.random.default_rng(1)
    for bits, kind, zeros in itertools.product(WIDTHS, (0, 1, 2), (False, True)):
        matrix = random_matrix(
            rng,
            [(9, bits), (3, bits)],
            70,
            kind=kind,
            zeros=zeros,
            outliers=0.1,
            column_scale=True,
            column_order=zeros,
            half=kind == 1,
        )
        found = matrix.dequantised()
        if matrix.column_order is not None:
            found = found[:, matrix.column_order]
        first = 0
        for rows in matrix.segments:
            extra = np.zeros((rows.rows, 70))
            if rows.outliers is not None:
                for n, k, v in zip(
                    rows.outliers.rows, rows.outliers.columns, rows.outliers.values, strict=True
                ):
                    extra[n, k] = v * 2.0**-rows.shift
            for n, k in itertools.product(range(rows.rows), range(70)):
                zero = 1 << (bits - 1) if rows.zeros is None else int(rows.zeros[n, k // 32])
                scale = float(rows.scales()[n, k // 32])
                assert matrix.column_scale is not None
                exact = (int(rows.codes[n, k]) - zero + rows.half / 2 + extra[n, k]) * scale
                exact *= float(matrix.column_scale[k])
                assert found[first + n, k] == pytest.approx(exact, rel=3e-7, abs=1e-30)
            first += rows.rows


def test_rows_between_takes_their_outliers() -> None:
    rng = np.random.default_rng(2)
    rows = random_rows(rng, 40, 50, 4, zeros=True, outliers=0.1)
    part = rows.rows_between(13, 29)
    np.testing.assert_array_equal(part.dequantised(), rows.dequantised()[13:29])


def test_bfloat16_rounds_half_to_even() -> None:
    values = np.array(
        [1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, np.inf, -3.14], np.float32
    )
    import ml_dtypes

    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(to_bfloat16(values), expected)
    assert np.isnan(to_bfloat16(np.array([np.nan], np.float32)))[0]


def valid(bits: int = 4, **options: Any) -> QuantizedRows:
    return random_rows(np.random.default_rng(3), 20, 70, bits, **options)


WRONG_ROWS = {
    "widths": {"bits": 7},
    "blocks of 48": {"block": 48},
    "largest code": {"codes": np.full((20, 70), 16, np.uint8)},
    "codes are int64": {"codes": np.zeros((20, 70), np.int64)},
    "shift 4": {"shift": MOST_SHIFT[4] + 1},
    "half steps": {"half": True, "shift": 0},
    "scale kind": {"scale_kind": 3},
    "block_scale is missing": {"scale_kind": 1},
    "row_scale is float64": {"row_scale": np.ones(20)},
    "no finite bfloat16": {"row_scale": np.full(20, 1 / 3, np.float32)},
    "scale_codes is": {"scale_codes": np.zeros((20, 2), np.uint8)},
    "zeros is": {"zeros": np.zeros((20, 2), np.uint8)},
    "rows are not within": {
        "outliers": Outliers(np.array([20]), np.array([0]), np.array([1], np.int8))
    },
    "outlier is not within": {
        "outliers": Outliers(np.array([2]), np.array([0]), np.array([32], np.int8))
    },
    "share a place": {
        "outliers": Outliers(np.array([2, 2]), np.array([5, 5]), np.array([1, 2], np.int8))
    },
}


@pytest.mark.parametrize("message", WRONG_ROWS)
def test_rows_that_cannot_be_packed(message: str) -> None:
    rows = dataclasses.replace(valid(), **WRONG_ROWS[message])  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=message):
        pack([QuantizedMatrix((rows,))])


def test_matrices_that_cannot_be_packed() -> None:
    with pytest.raises(ExportError, match="differ in their make-up"):
        pack([QuantizedMatrix((valid(4),)), QuantizedMatrix((valid(5),))])
    with pytest.raises(ExportError, match="no outliers"):
        pack(
            [
                QuantizedMatrix(
                    (
                        dataclasses.replace(
                            valid(8, shift=0), outliers=valid(4, outliers=0.1).outliers
                        ),
                    )
                )
            ]
        )
    with pytest.raises(ExportError, match="column scale"):
        pack([QuantizedMatrix((valid(),), np.ones(69, np.float32))])
    for order in (np.arange(69), np.arange(1, 71), np.zeros(70, np.int64)):
        with pytest.raises(ExportError, match="column order that is no permutation of 70"):
            pack([QuantizedMatrix((valid(),), None, order)])
    with pytest.raises(ExportError, match="differ in their make-up"):
        pack([QuantizedMatrix((valid(),), None, order) for order in (None, ORDER)])
    with pytest.raises(ExportError, match="ask for fewer"):
        pack([QuantizedMatrix((valid(outliers=0.5),))])
    with pytest.raises(ExportError, match="not 1 to 64"):
        pack([QuantizedMatrix((valid(),) * 65)])


def put(at: int, kind: str, value: int) -> Any:
    def change(blob: Array) -> Array:
        struct.pack_into(kind, blob, at, value)
        return blob

    return change


ORDER = np.arange(70)[::-1]
BASE = 128  # of the only section, whose column scales take 192 bytes, their order 320
ORDERED = BASE + 192
CODES = ORDERED + 320
META = CODES + 2 * 3 * 64 * 4
META_BYTES = 32 + 2 * 3 * 16 + 8
WRONG_BYTES: dict[str, tuple[str, Any]] = {
    "magic": ("begins with", put(0, "<I", 1)),
    "version": ("version 2", put(4, "<I", 2)),
    "no matrices": ("none may be 0", put(8, "<I", 0)),
    "stack": ("parts take", put(8, "<I", 1 << 31)),
    "rows": ("its segments have 20", put(12, "<I", 21)),
    "columns": ("parts take", put(16, "<I", 1 << 30)),
    "block": ("blocks of 33", put(20, "<I", 33)),
    "other block": ("parts take", put(20, "<I", 64)),
    "no segments": ("0 segments", put(24, "<I", 0)),
    "many segments": ("65 segments", put(24, "<I", 65)),
    "flags": ("version 1 leaves zero", put(28, "<I", 15)),
    "no outlier flag": ("has no flag", put(28, "<I", 5)),
    "no order flag": ("parts take", put(28, "<I", 3)),
    "total": ("header says", put(32, "<Q", 1 << 60)),
    "outliers": ("parts take", put(40, "<Q", 1 << 62)),
    "one outlier less": ("fills its padding", put(40, "<Q", 139)),
    "reserved": ("version 1 leaves zero", put(48, "<B", 1)),
    "segment rows": ("no rows in segment", put(64, "<I", 0)),
    "width": ("7-bit codes", put(68, "<B", 7)),
    "zeros": ("does not know", put(69, "<B", 2)),
    "kind": ("does not know", put(70, "<B", 3)),
    "shift": ("by 4", put(71, "<B", 4)),
    "segment reserved": ("does not know", put(73, "<B", 1)),
    "half": ("does not know", put(72, "<B", 2)),
    "half without shift": ("half steps", lambda blob: put(71, "<B", 0)(put(72, "<B", 1)(blob))),
    "header padding": ("fills its padding", put(100, "<B", 1)),
    "column scale": ("column scale that is not finite", put(BASE, "<H", 0x7F80)),
    "column padding": ("fills its padding", put(BASE + 142, "<B", 1)),
    "column of none": ("no permutation", put(ORDERED + 8, "<I", 70)),
    "column of none by far": ("no permutation", put(ORDERED, "<I", 1 << 31)),
    "column twice": ("no permutation", put(ORDERED + 8, "<I", 68)),
    "order padding": ("fills its padding", put(ORDERED + 280, "<B", 1)),
    "row padding": ("fills its padding", put(CODES + 3 * 256 + 60, "<B", 0)),
    "code padding": ("fills its padding", put(CODES + 2 * 256 + 64 + 2, "<B", 0)),
    "row scale": ("row scale that is not finite", put(META, "<H", 0xFFFF)),
    "padded row scale": ("pad a strip", put(META + META_BYTES + 2 * 4, "<H", 0x3F80)),
    "padded scale code": ("pad a strip", put(META + META_BYTES + 32 + 4, "<B", 1)),
    "padded zero point": ("padding", put(META + META_BYTES + 32 + 48 + 4, "<B", 1)),
    "start": ("follow each other", put(META + 128, "<I", 1)),
    "count": ("follow each other", put(META + 132, "<B", 255)),
    "last count": ("outliers and places", put(META + META_BYTES + 133, "<B", 250)),
    "count padding": ("fills its padding", put(META + 134, "<B", 1)),
    "meta padding": ("fills its padding", put(META + 2 * META_BYTES, "<B", 1)),
    "end": ("fills its padding", put(-1, "<B", 1)),
    "short": ("header says", lambda blob: blob[:-1]),
    "shorter": ("less than its header", lambda blob: blob[:63]),
    "dtype": ("not uint8", lambda blob: blob.view(np.int8)),
    "rank": ("not uint8", lambda blob: blob[None]),
}


@pytest.mark.parametrize("name", WRONG_BYTES)
def test_malformed_blobs_are_refused(name: str) -> None:
    message, change = WRONG_BYTES[name]
    matrix = QuantizedMatrix((valid(zeros=True, outliers=0.1),), np.ones(70, np.float32), ORDER)
    blob = pack([matrix])
    assert read_layout(blob).outliers == 140 and blob.size == META + 320 + 320
    with pytest.raises(PackageError, match=message):
        unpack(change(blob.copy()))


def test_outliers_in_padding_or_twice_are_refused() -> None:
    outliers = Outliers(np.array([0, 1]), np.array([3, 3]), np.array([1, 2], np.int8))
    rows = dataclasses.replace(random_rows(np.random.default_rng(4), 3, 33, 4), outliers=outliers)
    blob = pack([QuantizedMatrix((rows,))])
    for entry in (3 << 4, 2 << 4, 0, 33 << 4 | 1, 63 << 4 | 1, 3 << 4 | 3):
        changed = blob.copy()
        struct.pack_into("<H", changed, blob.size - 62, entry)
        with pytest.raises(PackageError, match="outliers"):
            unpack(changed)


def test_a_changed_byte_is_refused_or_read() -> None:
    """Whatever a byte becomes, no other error and no other way to write the same matrix."""
    rng = np.random.default_rng(5)
    make_up = {"outliers": 0.1, "column_scale": True, "column_order": True}
    blob = pack([random_matrix(rng, [(17, 3), (2, 8)], 70, **make_up)])
    for at in range(0, blob.size, 3):
        changed = blob.copy()
        changed[at] ^= rng.integers(1, 256)
        try:
            found = unpack(changed)
        except PackageError:
            continue
        np.testing.assert_array_equal(pack(found), changed)
