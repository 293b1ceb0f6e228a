"""The parts of all weights and the mean bits that were asked for go in; the segments of every
group, whose bytes are known to fit, come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import WIDTHS, Segment, packed_bytes_of
from edgewright.export.quantize.allocate import Choice, Part, Share, Unmet, allocate
from edgewright.export.quantize.plan import WeightGroup
from edgewright.model.loading import LazyModel

Shares = Mapping[str, tuple[Share, ...]]  # by group key, in the order of its rows

_TRIES = 20
_LEAST_STEP_BYTES = 16


def fit_budget(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    parts: Sequence[Part],
    bits: float,
    block: int,
    scaled: frozenset[str] = frozenset(),  # groups that may have column scales
) -> dict[str, tuple[Share, ...]]:
    count = model.parameter_count
    kept = kept_bytes(model, plan)
    allowed = bits * count / 8
    budget = allowed - kept
    by_key = {group.key: group for group in plan}
    for attempt in range(_TRIES):
        try:
            shares = _joined(allocate(parts, budget))
        except Unmet as unmet:
            least = 8 * (unmet.least_bytes + allowed - budget) / count
            raise ExportError(
                f"bits={bits:g} cannot be met: this model has at least {least:.3f}; ask for that"
            ) from None
        exact = sum(
            exact_bytes(by_key[key], found, block, key in scaled) for key, found in shares.items()
        )
        over = kept + exact - allowed
        if over <= 0:
            return shares
        # Headers and padding, which no part can be charged with. Shares are whole strips: a budget
        # that shrinks by less may buy the same ones, for ever.
        budget -= max(over, _LEAST_STEP_BYTES << attempt)
    raise AssertionError("the sizes of the parts do not add up")


def check_reachable(model: LazyModel, plan: Sequence[WeightGroup], bits: float, block: int) -> None:
    """Before anything is measured: refuse a budget that even the fewest bits exceed."""
    least = Choice(min(WIDTHS), 0.0)
    stored = kept_bytes(model, plan)
    for group in plan:
        stored += exact_bytes(group, [Share(group.key, group.shape[1], least)], block, False)
    found = 8 * stored / model.parameter_count
    if found > bits:
        raise ExportError(
            f"bits={bits:g} cannot be met: with every weight at its fewest bits, and what is kept"
            f" as it is, this model has {found:.3f}; ask for at least that"
        )


def kept_bytes(model: LazyModel, plan: Sequence[WeightGroup]) -> int:
    """Of the parameters that stay as they are."""
    planned = {name for group in plan for name in group.names}
    return sum(t.nbytes for name, t in model.parameters.items() if name not in planned)


def exact_bytes(group: WeightGroup, shares: Sequence[Share], block: int, column_scale: bool) -> int:
    stack, _, columns = group.shape
    segments = [Segment(s.rows, s.choice.bits, s.choice.zeros) for s in shares]
    entries = [most_outliers(share, columns) for share in shares]
    listed = stack * sum(entries) if any(share.choice.outliers for share in shares) else None
    return packed_bytes_of(
        segments, columns, block, outliers=listed, column_scale=column_scale, stack=stack
    )


def most_outliers(share: Share, columns: int) -> int:
    return int(share.choice.outliers * share.rows * columns) + 1 if share.choice.outliers else 0


def _joined(shares: Sequence[Share]) -> dict[str, tuple[Share, ...]]:
    """Neighbours with the same choice are one segment."""
    found: dict[str, list[Share]] = {}
    for share in shares:
        of_group = found.setdefault(share.key, [])
        more = of_group.pop().rows if of_group and of_group[-1].choice == share.choice else 0
        of_group.append(Share(share.key, more + share.rows, share.choice))
    return {key: tuple(each) for key, each in found.items()}
