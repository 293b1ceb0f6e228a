"""A model whose checkpoint stores integers and the plan of its weights go in; the groups that go
into a package with those very codes come out, and their blobs.

Columns that were quantised out of order stay in the order of their groups, and the blob says which
they are. What is not stored so, or not in groups of one size, keeps its values as floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

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
        parts = _by_matrix(self.group, self.parts)
        matrices = _alike([[part.read(0, part.rows) for part in found] for found in parts])
        orders = _orders([found[0].order for found in parts], self.group.shape[2])
        made = [
            QuantizedMatrix(tuple(found), None, order)
            for found, order in zip(matrices, orders, strict=True)
        ]
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
    matrices = _by_matrix(group, parts)
    return (
        whole
        and len({part.block for part in parts}) == 1
        and all(_of_one_order(group, matrix) for matrix in matrices)
        and len({tuple(_make_up(part) for part in matrix) for matrix in matrices}) == 1
    )


def _of_one_order(group: WeightGroup, matrix: Sequence[StoredCodes]) -> bool:
    first = matrix[0].order
    if first is None or group.kind == "latent_up":  # whose op takes columns as they are
        return all(part.order is None for part in matrix)
    return all(part.order is not None and torch.equal(part.order, first) for part in matrix)


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


def _orders(
    found: Sequence[torch.Tensor | None], columns: int
) -> Sequence[NDArray[np.int64] | None]:
    """A stack's matrices all have an order of columns, or none has."""
    if all(order is None for order in found):
        return [None] * len(found)
    return [np.arange(columns) if order is None else order.numpy() for order in found]


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
