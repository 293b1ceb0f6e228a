"""Bits go where they save the most loss a byte, and never past the budget."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from edgewright.artifacts.errors import ExportError
from edgewright.export.quantize.allocate import Choice, Part, Price, Unmet, allocate
from edgewright.export.quantize.budget import check_reachable, exact_bytes, fit_budget, kept_bytes
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.prices import alike, blind_sensitivity, parts_of

WIDTHS = (2, 3, 4, 5, 6, 8)


def part(key: str, rows: int, weight: float, columns: int = 128) -> Part:
    return Part(
        key,
        rows,
        tuple(
            Price(Choice(bits, 0.0), rows * columns * bits / 8, weight * rows * 4.0**-bits)
            for bits in WIDTHS
        ),
    )


def cost(parts: list[Part], shares: list) -> tuple[float, float]:
    prices = {(p.key, price.choice): (price, p.rows) for p in parts for price in p.prices}
    taken = [(prices[share.key, share.choice], share.rows) for share in shares]
    return (
        sum(price.bytes * rows / whole for (price, whole), rows in taken),
        sum(price.loss * rows / whole for (price, whole), rows in taken),
    )


@pytest.mark.parametrize("bits", [2.0, 2.3, 3.1, 4.1, 7.9])
def test_the_budget_is_met_and_nearly_spent(bits: float) -> None:
    draw = random.Random(3)
    parts = [part(str(i), 16 * draw.randint(1, 40), 10 ** draw.uniform(-3, 3)) for i in range(30)]
    values = sum(p.rows for p in parts) * 128
    budget = values * bits / 8
    spent, _ = cost(parts, shares := allocate(parts, budget))
    assert spent <= budget
    assert spent >= budget - 0.02 * values / 8
    assert [sum(s.rows for s in shares if s.key == p.key) for p in parts] == [p.rows for p in parts]


def test_what_matters_gets_more_bits() -> None:
    parts = [part("calm", 64, 1.0), part("touchy", 64, 1000.0)]
    calm, touchy = allocate(parts, 2 * 64 * 128 * 3.5 / 8)
    assert calm.choice.bits < touchy.choice.bits


def test_no_other_choice_of_so_few_bytes_loses_less() -> None:
    draw = random.Random(7)
    parts = [part(str(i), 16, 10 ** draw.uniform(-1, 1)) for i in range(4)]
    for budget in (4 * 16 * 128 * bits / 8 for bits in (2.5, 3.25, 4.5)):
        spent, lost = cost(parts, allocate(parts, budget))
        best = min(
            sum(price.loss for price in chosen)
            for chosen in every([p.prices for p in parts])
            if sum(price.bytes for price in chosen) <= spent
        )
        assert lost <= best * (1 + 1e-9)


def every(prices: list[tuple[Price, ...]]) -> list[tuple[Price, ...]]:
    if not prices:
        return [()]
    return [(first, *rest) for first in prices[0] for rest in every(prices[1:])]


def test_a_budget_below_the_fewest_bits_is_refused() -> None:
    with pytest.raises(Unmet):
        allocate([part("a", 16, 1.0)], 16 * 128 * 1.9 / 8)


def test_neighbouring_rows_that_matter_alike_are_one_part() -> None:
    rows = torch.cat((torch.full((64,), 1.0), torch.full((48,), 100.0), torch.full((8,), 1e4)))
    assert alike(rows, 10) == [(0, 64), (64, 112), (112, 120)]
    assert len(alike(torch.logspace(0, 8, 800), 5)) == 5


@pytest.mark.parametrize("name", ["llama-biased-tied", "gpt-oss"])
def test_all_that_is_stored_fits(name: str, opened: Callable) -> None:
    model, plan = opened(name)
    options = QuantizeOptions.check(5.0)
    parts = [
        each
        for group in plan
        for each in parts_of(
            model, group, {n: blind_sensitivity(model, n) for n in group.names}, options
        )
    ]
    kept = kept_bytes(model, plan)
    for codes in (4.5 + i / 160 for i in range(240)):
        bits = codes + 8 * kept / model.parameter_count
        shares = fit_budget(model, plan, parts, bits, 128)
        stored = sum(exact_bytes(group, shares[group.key], 128, False) for group in plan)
        mean = 8 * (stored + kept) / model.parameter_count
        assert bits - 0.3 < mean <= bits
    with pytest.raises(ExportError, match=r"cannot be met.*this model has at least \d"):
        fit_budget(model, plan, parts, 2.01, 128)
    with pytest.raises(ExportError, match=r"cannot be met.*this model has \d"):
        check_reachable(model, plan, 2.01, 128)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"bits": 1.5}, "cannot be met"),
        ({"bits": 17}, "cannot be met"),
        ({"bits": 4, "method": "magic"}, "not known"),
        ({"bits": 4, "method": "gptq"}, "needs text"),
        ({"bits": 4, "block": 48}, "block=48"),
        ({"bits": 4, "outliers": 0.5}, "outliers=0.5"),
    ],
)
def test_options_out_of_reach_are_refused(options: dict, problem: str) -> None:
    with pytest.raises(ExportError, match=problem):
        QuantizeOptions.check(**options)
