"""A model whose checkpoint stores integers and the plan of its weights go in; the groups that go
into a package with those very codes come out, and their blobs.

What is not stored so, or not in groups of columns that lie together, keeps its values as floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from edgewright.custom_ops.packed_weights import QuantizedMatrix, QuantizedRows, pack
from edgewright.export.quantize.plan import WeightGroup
from edgewright.model.loading import LazyModel
from edgewright.model.stored_codes import StoredCodes, stored_codes


@dataclass(frozen=True)
class ImportedGroup:
    """A group and the parts of its matrices as they are stored, one matrix after the other."""

    group: WeightGroup
    parts: tuple[StoredCodes, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(part.bits for part in self.parts)

    def pieces(self) -> Iterator[bytes]:
        stack, rows, _ = self.group.shape
        matrices: list[list[QuantizedRows]] = [[] for _ in range(stack)]
        base = 0
        for part in self.parts:
            matrices[base // rows].append(part.read(0, part.rows))
            base += part.rows
        made = [QuantizedMatrix(tuple(found), None) for found in _alike(matrices)]
        yield pack(made).tobytes()


def imported_groups(model: LazyModel, plan: Sequence[WeightGroup]) -> Mapping[str, ImportedGroup]:
    """By key. Members of a group that are stored differently become groups of their own."""
    found = [each for group in plan for each in _imported(model, group)]
    ops = {each.group.key: each for each in found if each.group.kind == "experts"}
    for together in _experts_together(plan):
        if not all(name in ops for name in together):  # one op takes all three alike
            found = [each for each in found if each.group.key not in together]
    return {each.group.key: each for each in found}


def _imported(model: LazyModel, group: WeightGroup) -> Iterator[ImportedGroup]:
    stored = [stored_codes(model.weights[name]) for name in group.names]
    parts = [part for found in stored for part in found or ()]
    if all(stored) and _together(group, parts):
        yield ImportedGroup(group, tuple(parts))
    elif len(group.names) > 1:
        for name, rows in zip(group.names, group.rows, strict=True):
            shape = (group.shape[0], rows, group.shape[2])
            yield from _imported(
                model, replace(group, names=(name,), rows=(rows,), shape=shape, activation=None)
            )


def _together(group: WeightGroup, parts: Sequence[StoredCodes]) -> bool:
    stack, rows, _ = group.shape
    ends = np.cumsum([part.rows for part in parts])
    whole = set(range(rows, stack * rows + 1, rows)) <= set(ends.tolist())
    return (
        whole
        and len({part.block for part in parts}) == 1
        and all(part.order is None for part in parts)
        and len({tuple(_make_up(part) for part in each) for each in _by_matrix(group, parts)}) == 1
    )


def _by_matrix(group: WeightGroup, parts: Sequence[StoredCodes]) -> list[list[StoredCodes]]:
    rows, ends = group.shape[1], np.cumsum([part.rows for part in parts]).tolist()
    numbered = zip(ends, parts, strict=True)
    return [
        [part for _, part in found]
        for _, found in groupby(numbered, key=lambda each: (each[0] - 1) // rows)
    ]


def _make_up(part: StoredCodes) -> tuple[int, int, int]:
    return part.rows, part.bits, part.scale_kind


def _alike(matrices: Sequence[Sequence[QuantizedRows]]) -> list[list[QuantizedRows]]:
    """A stack's matrices have zero points in the same segments: the usual ones where none are."""
    columns = list(zip(*matrices, strict=True))
    uneven = [len({each.zeros is None for each in column}) > 1 for column in columns]
    return [
        [_with_zeros(each) if fill else each for each, fill in zip(row, uneven, strict=True)]
        for row in matrices
    ]


def _with_zeros(rows: QuantizedRows) -> QuantizedRows:
    if rows.zeros is not None:
        return rows
    usual = np.full(rows.scales().shape, 1 << (rows.bits - 1), np.uint8)
    return replace(rows, zeros=usual)


def _experts_together(plan: Sequence[WeightGroup]) -> list[tuple[str, ...]]:
    """The stacks of each layer's experts."""
    keys = [group.key for group in plan if group.kind == "experts"]
    owners = groupby(sorted(keys), key=lambda key: key.rpartition(".")[0])
    return [tuple(found) for _, found in owners]
