"""Quantised matrices go in, one blob of bytes that every instruction set reads comes out, and back.

docs/packed-weights.md is the specification. Needs no torch and no onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError, PackageError
from edgewright.custom_ops.packed_codes import pack_strips, unpack_strips
from edgewright.custom_ops.packed_layout import (
    BLOCKS,
    CHUNK,
    CODED,
    FLOAT16,
    GROUP,
    MOST_SEGMENTS,
    MOST_SHIFT,
    ROWS_OF_STRIP,
    SCALE_KINDS,
    WIDTHS,
    PackedLayout,
    Segment,
    SegmentPlace,
    packed_bytes,
    packed_bytes_of,
    read_layout,
    up_to,
)
from edgewright.custom_ops.quantized import (
    Bytes,
    Float32,
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
    is_order,
    to_bfloat16,
)

__all__ = [
    "BLOCKS",
    "MOST_SHIFT",
    "ROWS_OF_STRIP",
    "SCALE_KINDS",
    "WIDTHS",
    "Outliers",
    "PackedLayout",
    "QuantizedMatrix",
    "QuantizedRows",
    "Segment",
    "pack",
    "packed_bytes",
    "packed_bytes_of",
    "read_layout",
    "to_bfloat16",
    "unpack",
]

_PASS_BYTES = 1 << 20  # of codes, so that what a pass makes stays in the cache
_MOST_IN_CHUNK = 255
# An entry is its row, its column in the chunk << 4 and its value, 32 added, << 10.
_COLUMN_AT, _VALUE_AT, _VALUE_BIAS = 4, 10, 32


def pack(stack: Sequence[QuantizedMatrix]) -> Bytes:
    """The matrices differ in values alone: rows, widths and kinds of each segment are the same."""
    layout = layout_of(stack)
    blob = np.zeros(layout.total_bytes, np.uint8)
    header = layout.header()
    blob[: len(header)] = np.frombuffer(header, np.uint8)
    entries: list[NDArray[np.uint16]] = []
    start = 0
    for i, matrix in enumerate(stack):
        at = layout.sections_offset + i * layout.section_bytes
        section = blob[at : at + layout.section_bytes]
        if matrix.column_scale is not None:
            section[: 2 * layout.columns] = _high_half(matrix.column_scale).view(np.uint8)
        if matrix.column_order is not None:
            order = matrix.column_order.astype("<u4").view(np.uint8)
            section[layout.column_scale_bytes :][: order.size] = order
        for place, rows in zip(layout.places, matrix.segments, strict=True):
            _pack_codes(layout, place, rows, section)
            own, counts = _entries(layout, rows)
            _pack_meta(layout, place, rows, section, counts, start)
            entries.append(own)
            start += own.size
    if start:
        listed = np.concatenate(entries).view(np.uint8)
        blob[layout.outliers_offset : layout.outliers_offset + listed.size] = listed
    return blob


def layout_of(stack: Sequence[QuantizedMatrix]) -> PackedLayout:
    """What `pack` makes of them, which are checked."""
    if not stack:
        raise ExportError("a packed weight needs a matrix")
    first, layouts = stack[0], set()
    if not 1 <= len(first.segments) <= MOST_SEGMENTS:
        raise ExportError(f"a matrix of {len(first.segments)} segments, not 1 to {MOST_SEGMENTS}")
    lists, count = False, 0
    for matrix in stack:
        matrix.check()
        segments = tuple(rows.segment for rows in matrix.segments)
        of_columns = matrix.column_scale is not None, matrix.column_order is not None
        layouts.add((matrix.columns, matrix.block, segments, *of_columns))
        listed = [rows.outliers for rows in matrix.segments if rows.outliers is not None]
        lists |= bool(listed)
        count += sum(map(len, listed))
    if len(layouts) > 1:
        found = " and ".join(str(layout) for layout in sorted(layouts, key=str)[:2])
        raise ExportError(f"the matrices of a packed weight differ in their make-up: {found}")
    columns, block, segments, has_scale, has_order = layouts.pop()
    return PackedLayout(
        columns, block, segments, len(stack), has_scale, count if lists else None, has_order
    )


def unpack(blob: NDArray[Any]) -> tuple[QuantizedMatrix, ...]:
    """Everything in the blob is checked: packing what comes out gives the same bytes again."""
    layout = read_layout(blob)
    _require(not blob[_header_end(layout) : layout.sections_offset].any(), "fills its padding")
    end = layout.outliers_offset + 2 * (layout.outliers or 0)
    _require(not blob[end:].any(), "fills its padding")
    listed = blob[layout.outliers_offset : end].view("<u2")
    matrices, start = [], 0
    for i in range(layout.stack):
        at = layout.sections_offset + i * layout.section_bytes
        section = blob[at : at + layout.section_bytes]
        column_scale, column_order = _column_scale(layout, section), _column_order(layout, section)
        segments = []
        for place in layout.places:
            rows, start = _unpack_rows(layout, place, section, listed, start)
            segments.append(rows)
        matrices.append(QuantizedMatrix(tuple(segments), column_scale, column_order))
    _require(start == listed.size, f"counts {listed.size} outliers and places {start}")
    return tuple(matrices)


def _header_end(layout: PackedLayout) -> int:
    return 64 + 16 * len(layout.segments)


def _require(right: bool, otherwise: str) -> None:
    if not right:
        raise PackageError(f"packed weight: it {otherwise}; export the package again")


def _pack_codes(
    layout: PackedLayout, place: SegmentPlace, rows: QuantizedRows, section: Bytes
) -> None:
    """Padding holds the middle code, which stands for 0 unless a block has a zero point."""
    bits, width = rows.bits, layout.padded_columns
    end = place.codes + layout.code_bytes(place.segment)
    vectors = section[place.codes : end].reshape(-1, width // GROUP, bits, 64)
    step = _strips_of_pass(width)
    for strip in range(0, len(vectors), step):
        own = slice(strip * ROWS_OF_STRIP, (strip + step) * ROWS_OF_STRIP)
        codes = rows.codes[own]
        count = min(step, len(vectors) - strip) * ROWS_OF_STRIP
        if codes.shape != (count, width):
            padded = np.full((count, width), 1 << (bits - 1), np.uint8)
            padded[: codes.shape[0], : codes.shape[1]] = codes
            codes = padded
        vectors[strip : strip + step] = pack_strips(codes, bits)


def _strips_of_pass(width: int) -> int:
    return max(1, _PASS_BYTES // (ROWS_OF_STRIP * width))


def _pack_meta(
    layout: PackedLayout,
    place: SegmentPlace,
    rows: QuantizedRows,
    section: Bytes,
    counts: NDArray[np.int64],
    start: int,
) -> None:
    meta = _meta(layout, place, section)
    if rows.scale_kind == CODED:
        assert rows.row_scale is not None and rows.scale_codes is not None
        # [N] → [strips, 16]; [N, blocks] → [strips, blocks, 16]
        meta[:, :32] = _by_strip(_high_half(rows.row_scale)[:, None]).view(np.uint8)
        scales: NDArray[Any] = rows.scale_codes
    else:
        assert rows.block_scale is not None
        if rows.scale_kind == FLOAT16:
            scales = rows.block_scale.astype("<f2").view(np.uint16)
        else:
            scales = _high_half(rows.block_scale)
    packed = _by_strip(scales).view(np.uint8)
    meta[:, 32 : 32 + packed.shape[1]] = packed
    if rows.zeros is not None:
        zeros = _by_strip(rows.zeros)
        meta[:, 32 + packed.shape[1] :][:, : zeros.shape[1]] = zeros
    if layout.outliers is not None:
        at = layout.start_offset(place.segment)
        starts = start + np.concatenate([[0], np.cumsum(counts.sum(axis=1))[:-1]])
        meta[:, at : at + 4] = starts.astype("<u4")[:, None].view(np.uint8)
        meta[:, at + 4 : at + 4 + layout.chunks] = counts


def _meta(layout: PackedLayout, place: SegmentPlace, section: Bytes) -> Bytes:
    """A view, [strips, bytes of one]."""
    size = layout.meta_bytes(place.segment)
    strips = up_to(ROWS_OF_STRIP, place.segment.rows) // ROWS_OF_STRIP
    return section[place.meta : place.meta + strips * size].reshape(strips, size)


def _by_strip(values: NDArray[Any]) -> NDArray[Any]:
    """[N, blocks] → [strips, blocks * 16], each block's 16 rows together."""
    strips = up_to(ROWS_OF_STRIP, len(values)) // ROWS_OF_STRIP
    padded = np.zeros((strips * ROWS_OF_STRIP, values.shape[1]), values.dtype)
    padded[: len(values)] = values
    blocks = padded.reshape(strips, ROWS_OF_STRIP, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(blocks).reshape(strips, -1)


def _high_half(values: Float32) -> NDArray[np.uint16]:
    """Of each float32, which is a bfloat16."""
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    return (bits >> np.uint32(16)).astype("<u2")


def _entries(
    layout: PackedLayout, rows: QuantizedRows
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The outliers in the order of their list, and how many each strip's chunks have."""
    strips = up_to(ROWS_OF_STRIP, rows.rows) // ROWS_OF_STRIP
    counts = np.zeros((strips, layout.chunks), np.int64)
    outliers = rows.outliers
    if outliers is None or not len(outliers):
        return np.zeros(0, "<u2"), counts
    strip, row = np.divmod(outliers.rows, ROWS_OF_STRIP)
    chunk, column = np.divmod(outliers.columns, CHUNK)
    order = np.lexsort((row, column, chunk, strip))
    np.add.at(counts, (strip, chunk), 1)
    if counts.max() > _MOST_IN_CHUNK:
        raise ExportError(
            f"{counts.max()} outliers within {ROWS_OF_STRIP} rows and {CHUNK} columns; the format"
            f" takes {_MOST_IN_CHUNK}: ask for fewer outliers"
        )
    value = outliers.values.astype(np.int64) + _VALUE_BIAS
    entries = row | (column << _COLUMN_AT) | (value << _VALUE_AT)
    return entries[order].astype("<u2"), counts


def _column_scale(layout: PackedLayout, section: Bytes) -> Float32 | None:
    if not layout.column_scale:
        return None
    end = 2 * layout.columns
    _require(not section[end : layout.column_scale_bytes].any(), "fills its padding")
    return _finite(_from_high_half(section[:end].view("<u2")), "column scale")


def _column_order(layout: PackedLayout, section: Bytes) -> NDArray[np.int64] | None:
    if not layout.column_order:
        return None
    stored = section[layout.column_scale_bytes : layout.codes_offset]
    end = 4 * layout.columns
    _require(not stored[end:].any(), "fills its padding")
    order = stored[:end].view("<u4").astype(np.int64)
    _require(is_order(order, layout.columns), "has a column order that is no permutation")
    return order


def _from_high_half(halves: NDArray[Any]) -> Float32:
    return (halves.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _finite(values: Float32, name: str) -> Float32:
    _require(bool(np.isfinite(values).all()), f"has a {name} that is not finite")
    return values


def _unpack_rows(
    layout: PackedLayout,
    place: SegmentPlace,
    section: Bytes,
    listed: NDArray[np.uint16],
    start: int,
) -> tuple[QuantizedRows, int]:
    """The rows, and where the next segment's outliers start."""
    segment, count, blocks = place.segment, place.segment.rows, layout.blocks
    meta = _meta(layout, place, section)
    following = place.meta + up_to(64, meta.size)
    _require(not section[place.meta + meta.size : following].any(), "fills its padding")
    heads = _rows_of(np.ascontiguousarray(meta[:, :32]).view("<u2"), 1)
    at = 32 + ROWS_OF_STRIP * blocks * (1 if segment.scale_kind == CODED else 2)
    stored = np.ascontiguousarray(meta[:, 32:at])
    row_scale = scale_codes = block_scale = zeros = None
    if segment.scale_kind == CODED:
        scale = _rows_of(stored, blocks)
        row_scale = _finite(_from_high_half(heads[:, 0]), "row scale")
        _require(not row_scale[count:].any(), "scales rows that pad a strip")
        row_scale, scale_codes = row_scale[:count], scale[:count]
    else:
        halves = _rows_of(stored.view("<u2"), blocks)
        is_half = segment.scale_kind == FLOAT16
        wide = halves.view("<f2").astype(np.float32) if is_half else _from_high_half(halves)
        block_scale = _finite(wide, "block scale")
        scale = block_scale
        _require(not heads.any(), "has row scales beside whole block scales")
        block_scale = block_scale[:count]
    _require(not scale[count:].any(), "scales rows that pad a strip")
    if segment.zeros:
        every = _rows_of(np.ascontiguousarray(meta[:, at : at + ROWS_OF_STRIP * blocks]), blocks)
        _require(not every[count:].any(), "fills its padding")
        zeros = every[:count]
    codes = _unpack_codes(layout, place, section)
    outliers = None
    if layout.outliers is not None:
        outliers, start = _unpack_outliers(layout, place, meta, listed, start)
    rows = QuantizedRows(
        segment.bits,
        layout.block,
        codes,
        segment.scale_kind,
        row_scale,
        scale_codes,
        block_scale,
        zeros,
        segment.shift,
        outliers,
        segment.half,
    )
    return rows, start


def _rows_of(values: NDArray[Any], blocks: int) -> NDArray[Any]:
    """[strips, blocks * 16] → [strips * 16, blocks]"""
    by_row = values.reshape(len(values), blocks, ROWS_OF_STRIP).transpose(0, 2, 1)
    return np.ascontiguousarray(by_row).reshape(-1, blocks)


def _unpack_codes(layout: PackedLayout, place: SegmentPlace, section: Bytes) -> Bytes:
    """[N, K]"""
    bits, width, rows = place.segment.bits, layout.padded_columns, place.segment.rows
    end = place.codes + layout.code_bytes(place.segment)
    vectors = section[place.codes : end].reshape(-1, width // GROUP, bits, 64)
    codes = np.empty((rows, layout.columns), np.uint8)
    step = _strips_of_pass(width)
    for strip in range(0, len(vectors), step):
        own = slice(strip * ROWS_OF_STRIP, (strip + step) * ROWS_OF_STRIP)
        part = unpack_strips(vectors[strip : strip + step], bits)
        target = codes[own]
        target[:] = part[: len(target), : layout.columns]
        middle = 1 << (bits - 1)
        for padding in (part[len(target) :], part[:, layout.columns :]):
            _require(bool((padding == middle).all()), "fills its padding")
    return codes


def _unpack_outliers(
    layout: PackedLayout,
    place: SegmentPlace,
    meta: Bytes,
    listed: NDArray[np.uint16],
    start: int,
) -> tuple[Outliers | None, int]:
    at = layout.start_offset(place.segment)
    starts = np.ascontiguousarray(meta[:, at : at + 4]).view("<u4")[:, 0]
    counts = meta[:, at + 4 : at + 4 + layout.chunks].astype(np.int64)
    _require(not meta[:, at + 4 + layout.chunks :].any(), "fills its padding")
    of_strip = counts.sum(axis=1)
    ends = list(accumulate(of_strip.tolist(), initial=start))
    _require(starts.tolist() == ends[:-1], "has outliers that do not follow each other")
    _require(ends[-1] <= listed.size, f"counts {listed.size} outliers and places {ends[-1]}")
    if place.segment.bits == 8:
        _require(ends[-1] == start, "has outliers among 8-bit codes")
        return None, start
    own = listed[start : ends[-1]].astype(np.int64)
    flat = np.repeat(np.arange(counts.size), counts.reshape(-1))
    strip, chunk = np.divmod(flat, layout.chunks)
    row, column = own & 15, (own >> _COLUMN_AT) & 63
    value = (own >> _VALUE_AT) - _VALUE_BIAS
    order = (flat << 10) | (column << 4) | row
    _require(bool((order[1:] > order[:-1]).all()), "has outliers out of order, or two in a place")
    rows, columns = strip * ROWS_OF_STRIP + row, chunk * CHUNK + column
    inside = (rows < place.segment.rows) & (columns < layout.columns)
    _require(bool(inside.all()), "has outliers in its padding")
    return Outliers(rows, columns, value.astype(np.int8)), ends[-1]
