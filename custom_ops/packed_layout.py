"""What a packed weight is made of goes in; where each part of its bytes lies comes out, and the
header's bytes, and back. docs/packed-weights.md is the specification."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import PackageError

MAGIC = 0x4D505745  # "EWPM"
VERSION = 1
ALIGNMENT = 64
ROWS_OF_STRIP = 16
GROUP = 32  # columns that the codes are interleaved over
CHUNK = 64  # columns that an outlier's place is counted in
WIDTHS = (2, 3, 4, 5, 6, 8)
BLOCKS = (32, 64, 128)
# How far a value may be shifted up, so that with an outlier of -32..31 it fits int8.
MOST_SHIFT = {2: 3, 3: 3, 4: 3, 5: 2, 6: 1, 8: 0}
MOST_SEGMENTS = 64
CODED, FLOAT16, BFLOAT16 = 0, 1, 2  # kinds of scale
SCALE_KINDS = (CODED, FLOAT16, BFLOAT16)

HEADER = struct.Struct("<8IQQ16s")
SEGMENT = struct.Struct("<I5B7s")
HAS_COLUMN_SCALE = 1
HAS_OUTLIERS = 2
HAS_COLUMN_ORDER = 4


def up_to(multiple: int, size: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Segment:
    """Rows that follow each other and are stored alike. With `half`, which takes a shift, every
    code stands for half a step more."""

    rows: int
    bits: int
    zeros: bool = False
    scale_kind: int = CODED
    shift: int = 0
    half: bool = False


@dataclass(frozen=True)
class SegmentPlace:
    """Where a segment's parts begin in its matrix's section."""

    segment: Segment
    first_row: int
    codes: int
    meta: int


@dataclass(frozen=True)
class PackedLayout:
    """`outliers` counts the entries in the whole blob; None leaves out their list."""

    columns: int
    block: int
    segments: tuple[Segment, ...]
    stack: int = 1
    column_scale: bool = False
    outliers: int | None = None
    column_order: bool = False
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", sum(segment.rows for segment in self.segments))

    @property
    def padded_columns(self) -> int:
        return up_to(GROUP, self.columns)

    @property
    def blocks(self) -> int:
        return -(-self.padded_columns // self.block)

    @property
    def chunks(self) -> int:
        return -(-self.padded_columns // CHUNK)

    @property
    def sections_offset(self) -> int:
        return up_to(ALIGNMENT, HEADER.size + SEGMENT.size * len(self.segments))

    @property
    def column_scale_bytes(self) -> int:
        return up_to(ALIGNMENT, 2 * self.columns) if self.column_scale else 0

    @property
    def codes_offset(self) -> int:
        """Where a section's first segment begins, behind what it says of its columns."""
        order = up_to(ALIGNMENT, 4 * self.columns) if self.column_order else 0
        return self.column_scale_bytes + order

    def code_bytes(self, segment: Segment) -> int:
        strips = up_to(ROWS_OF_STRIP, segment.rows) // ROWS_OF_STRIP
        return strips * (self.padded_columns // GROUP) * 64 * segment.bits

    def start_offset(self, segment: Segment) -> int:
        """Where a strip's meta says which outlier is its first."""
        bytes_of_block = (1 if segment.scale_kind == CODED else 2) + segment.zeros
        return ROWS_OF_STRIP * (2 + self.blocks * bytes_of_block)

    def meta_bytes(self, segment: Segment) -> int:
        """Of one strip."""
        if self.outliers is None:
            return self.start_offset(segment)
        return self.start_offset(segment) + up_to(4, 4 + self.chunks)

    @cached_property
    def places(self) -> tuple[SegmentPlace, ...]:
        return tuple(self._places())

    def _places(self) -> Iterator[SegmentPlace]:
        row, at = 0, self.codes_offset
        for segment in self.segments:
            meta = at + self.code_bytes(segment)
            yield SegmentPlace(segment, row, at, meta)
            strips = up_to(ROWS_OF_STRIP, segment.rows) // ROWS_OF_STRIP
            row, at = row + segment.rows, meta + up_to(64, strips * self.meta_bytes(segment))

    @cached_property
    def section_bytes(self) -> int:
        last = self.places[-1]
        strips = up_to(ROWS_OF_STRIP, last.segment.rows) // ROWS_OF_STRIP
        return last.meta + up_to(ALIGNMENT, strips * self.meta_bytes(last.segment))

    @property
    def outliers_offset(self) -> int:
        return self.sections_offset + self.stack * self.section_bytes

    @property
    def total_bytes(self) -> int:
        return self.outliers_offset + up_to(ALIGNMENT, 2 * (self.outliers or 0))

    def header(self) -> bytes:
        flags = HAS_COLUMN_SCALE * self.column_scale + HAS_OUTLIERS * (self.outliers is not None)
        flags += HAS_COLUMN_ORDER * self.column_order
        sizes = (self.stack, self.rows, self.columns, self.block, len(self.segments), flags)
        head = HEADER.pack(MAGIC, VERSION, *sizes, self.total_bytes, self.outliers or 0, bytes(16))
        table = b"".join(
            SEGMENT.pack(s.rows, s.bits, s.zeros, s.scale_kind, s.shift, s.half, bytes(7))
            for s in self.segments
        )
        return (head + table).ljust(self.sections_offset, b"\0")


def packed_bytes(
    rows: int,
    columns: int,
    block: int,
    bits: int,
    *,
    zeros: bool = False,
    outliers: int | None = 0,
    scale_kind: int = CODED,
    column_scale: bool = False,
    stack: int = 1,
) -> int:
    """For one segment. `outliers` counts the blob's entries; None leaves out their list."""
    segment = Segment(rows, bits, zeros, scale_kind)
    return packed_bytes_of(
        (segment,), columns, block, outliers=outliers, column_scale=column_scale, stack=stack
    )


def packed_bytes_of(
    segments: Sequence[Segment],
    columns: int,
    block: int,
    *,
    outliers: int | None = 0,
    column_scale: bool = False,
    stack: int = 1,
) -> int:
    layout = PackedLayout(columns, block, tuple(segments), stack, column_scale, outliers)
    return layout.total_bytes


def read_layout(blob: NDArray[Any]) -> PackedLayout:
    """What the header says, if it is in order and the blob is as long as that takes."""
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise _refused(f"has dtype {blob.dtype} and shape {list(blob.shape)}, not uint8 [bytes]")
    if blob.size < HEADER.size:
        raise _refused(f"has {blob.size} bytes, less than its header of {HEADER.size}")
    fields = HEADER.unpack(blob[: HEADER.size].tobytes())
    magic, version, stack, rows, columns, block, count, flags, total, outliers, rest = fields
    _check_version(magic, version, flags, rest)
    if not (stack and rows and columns):
        raise _refused(f"holds {stack} matrices of {rows} x {columns}; none may be 0")
    if block not in BLOCKS:
        raise _refused(f"has blocks of {block} columns, not one of {BLOCKS}")
    if not 1 <= count <= MOST_SEGMENTS:
        raise _refused(f"has {count} segments, not 1 to {MOST_SEGMENTS}")
    if outliers and not flags & HAS_OUTLIERS:
        raise _refused(f"counts {outliers} outliers and has no flag for them")
    end = HEADER.size + SEGMENT.size * count
    if total != blob.size or end > blob.size:
        raise _refused(f"has {blob.size} bytes, and its header says {total}")
    segments = tuple(_segments(blob[HEADER.size : end].tobytes()))
    listed = outliers if flags & HAS_OUTLIERS else None
    has_scale, has_order = bool(flags & HAS_COLUMN_SCALE), bool(flags & HAS_COLUMN_ORDER)
    layout = PackedLayout(columns, block, segments, stack, has_scale, listed, has_order)
    if layout.rows != rows:
        raise _refused(f"has {rows} rows, and its segments have {layout.rows}")
    if layout.total_bytes != total:
        raise _refused(f"has {total} bytes, and its parts take {layout.total_bytes}")
    return layout


def _check_version(magic: int, version: int, flags: int, rest: bytes) -> None:
    if magic != MAGIC:
        raise _refused(f"begins with {magic:#010x}, not {MAGIC:#010x}")
    if version != VERSION:
        raise _refused(f"is of version {version}, not {VERSION}")
    if flags & ~(HAS_COLUMN_SCALE | HAS_OUTLIERS | HAS_COLUMN_ORDER) or any(rest):
        raise _refused("sets header bits that version 1 leaves zero")


def _segments(table: bytes) -> Iterator[Segment]:
    for i, fields in enumerate(SEGMENT.iter_unpack(table)):
        rows, bits, zeros, kind, shift, half, rest = fields
        if not rows:
            raise _refused(f"has no rows in segment {i}")
        if bits not in WIDTHS:
            raise _refused(f"has {bits}-bit codes in segment {i}, not one of {WIDTHS}")
        if max(zeros, half) > 1 or kind not in SCALE_KINDS or any(rest):
            raise _refused(f"sets bytes of segment {i} that version 1 does not know")
        if shift > MOST_SHIFT[bits]:
            raise _refused(f"shifts the {bits}-bit codes of segment {i} by {shift}")
        if half and not shift:
            raise _refused(f"has half steps and no shift in segment {i}")
        yield Segment(rows, bits, bool(zeros), kind, shift, bool(half))


def _refused(what: str) -> PackageError:
    return PackageError(f"packed weight: it {what}; export the package again")
