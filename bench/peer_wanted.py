"""How fast we are to be beside others, and the rows that say whether we are."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

OURS, LLAMA, GENAI = "edgewright", "llama.cpp", "onnxruntime-genai int4"
PREFILL = "prefill"
SCAN_WANTED = 10.0
UNCHANGED = 0.95  # of the speed: less is not noise

Seconds = dict[str, list[float]]  # of a token, by side


@dataclass(frozen=True)
class Target:
    """Least ratio of our speed to a rival's: of prefill, or of decoding at a depth. `bits` are
    those of the side of ours that is meant, without what is beside the codes; else it is all."""

    what: str | int
    rival: str
    least: float | None
    bits: int | None = None


@dataclass(frozen=True)
class Wanted:
    depths: tuple[int, ...]
    at_16_bits: tuple[Target, ...]
    quantised: tuple[Target, ...]
    depth_independent: bool = False


def _at_16(prefill: float, decode: dict[int, float]) -> tuple[Target, ...]:
    decodes = (Target(depth, LLAMA, least) for depth, least in decode.items())
    return (Target(PREFILL, LLAMA, prefill), *decodes)


_Q3, _Q4 = f"{LLAMA} Q3_K_M", f"{LLAMA} Q4_0"
WANTED = {
    "llama": Wanted(
        (0, 8192),
        _at_16(1.0, {0: 1.0}),
        (
            Target(PREFILL, _Q4, 1.5),
            Target(0, _Q3, 1.3, 3),
            Target(0, _Q4, 1.3, 3),
            Target(0, GENAI, 1.15, 4),
            Target(0, _Q4, 1.15, 4),
            Target(8192, GENAI, 1.3, 4),
            Target(8192, _Q4, 1.3, 4),
        ),
    ),
    "mla": Wanted(
        (0, 2048, 8192),
        _at_16(1.0, {0: 1.0, 2048: 1.15, 8192: 1.5}),
        (Target(PREFILL, _Q4, 1.2), Target(2048, _Q4, 1.5), Target(8192, _Q4, 2.5)),
    ),
    "mamba": Wanted((0, 2048), _at_16(1.0, {0: 1.0}), (Target(PREFILL, _Q4, 2.0),), True),
    "mamba2": Wanted((0, 2048), _at_16(1.0, {0: 1.0}), (Target(PREFILL, _Q4, 2.0),), True),
    "granite": Wanted((0, 2048), _at_16(1.0, {0: 1.0}), ()),
}


@dataclass(frozen=True)
class Row:
    """Tokens a second of each side (or what `what` says), and the ratio of the first to the best
    of the others. `undisturbed` is that of each side's fastest tenth, for a machine that has other
    work."""

    shape: str
    what: str
    rates: dict[str, float]
    ratio: float
    wanted: float | None
    undisturbed: float | None = None

    @property
    def verdict(self) -> str:
        if self.wanted is None:
            return ""
        return "reached" if self.ratio >= self.wanted else "not reached"

    def __str__(self) -> str:
        wanted = f"wanted {self.wanted:.2f}  {self.verdict}" if self.wanted else ""
        undisturbed = f"({self.undisturbed:.2f})" if self.undisturbed else ""
        rates = "  ".join(f"{side} {rate:,.4g}" for side, rate in self.rates.items())
        return (
            f"{self.shape:8} {self.what:30} ratio {self.ratio:5.2f} {undisturbed:6} {wanted:24}"
            f"  {rates}"
        )


def beside(
    shape: str, what: str, ours: str, rival: str, seconds: Seconds, wanted: float | None
) -> Row:
    """A rival may run in several ways ("rival, so"): the fastest is what we are held against."""
    sides = [side for side in seconds if side == rival or side.startswith(f"{rival}, ")]
    rates, fast = medians(seconds), fastest(seconds)
    ratio, undisturbed = (each[ours] / max(each[side] for side in sides) for each in (rates, fast))
    shown = {side: rates[side] for side in (ours, *sides)}
    return Row(shape, what, shown, ratio, wanted, undisturbed)


def among_ours(name: str, what: str, seconds: Seconds) -> Row:
    """The last over the first: it must not be slower."""
    rates, fast = medians(seconds), list(fastest(seconds).values())
    ratio = list(rates.values())[-1] / next(iter(rates.values()))
    return Row(name, what, rates, ratio, UNCHANGED, fast[-1] / fast[0])


def medians(seconds: Seconds) -> dict[str, float]:
    return {side: 1 / statistics.median(found) for side, found in seconds.items()}


def fastest(seconds: Seconds) -> dict[str, float]:
    return {side: 1 / sorted(found)[len(found) // 10] for side, found in seconds.items()}
