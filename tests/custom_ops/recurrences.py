"""Calls of StateSpaceDual and GatedDelta: random inputs, what a plain loop in float64 makes of
them, and how far float32 may lie from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.custom_ops import OPS

Array = NDArray[Any]
Inputs = dict[str, Array]
EPSILON = float(np.finfo(np.float32).eps)
# Kernel and lowering sum up to so many steps' terms in one product. Roundings of a sum of n terms
# fall either way: they come to about the square root of n, not to n.
CHUNK = 64


def shifted(values: Array) -> Array:
    """The same values in float32, not aligned to any vector."""
    memory = np.empty(values.size + 1, np.float32)
    memory[1:] = values.ravel()
    return memory[1:].reshape(values.shape)


@dataclass(frozen=True)
class Judged:
    """y and the state after the call, and bounds of the error of each element."""

    y: Array
    state: Array
    y_error: Array
    state_error: Array

    def assert_right(self, found: list[Array], given: Inputs, note: str = "") -> None:
        pairs = ((self.y, self.y_error), (self.state, self.state_error))
        for got, (want, bound) in zip(found, pairs, strict=True):
            assert got.shape == want.shape
            assert np.isfinite(got).all(), note
            excess = abs(got - want) - bound
            assert (excess <= 1e-30).all(), f"{note} {excess.max()}"
        for row, count in enumerate(given["length"]):
            assert not found[0][row, count:].any(), "a padded step must give zeros"
            if count == 0:
                np.testing.assert_array_equal(found[1][row], given["state"][row])


class Call(Protocol):
    @property
    def length(self) -> tuple[int, ...]: ...
    @property
    def op(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, int | float]: ...
    def inputs(self) -> Inputs: ...
    def judge(self, given: Inputs) -> Judged: ...


def stepped(op: str) -> list[str]:
    """The inputs that have a step axis."""
    fixed = {"a", "skip", "state", "length"}
    return [tensor.name for tensor in OPS[op].inputs if tensor.name not in fixed]


def hide_padding(given: Inputs, op: str) -> Inputs:
    """What a padded step holds is not a number, and must not be seen."""
    for name in stepped(op):
        for row, count in enumerate(given["length"]):
            given[name][row, count:] = np.nan
    return given


@dataclass(frozen=True)
class StateSpaceCall:
    seq: int
    heads: int
    groups: int
    size: int
    width: int
    length: tuple[int, ...]
    fastest: float = 8.0  # decays are exp(-dt * a), with dt * a up to about so much
    op = "StateSpaceDual"

    @property
    def attributes(self) -> Mapping[str, int | float]:
        return {"groups": self.groups}

    def inputs(self) -> Inputs:
        rng = np.random.default_rng(self.seq * 1000 + self.heads)
        batch = len(self.length)

        def normal(*shape: int) -> Array:
            return shifted(rng.standard_normal(shape))

        rates = np.geomspace(1e-4, 1, self.heads) * self.fastest
        dt = shifted(rng.random((batch, self.seq, self.heads)) ** 3)
        given = {
            "x": normal(batch, self.seq, self.heads * self.width),
            "dt": dt,
            "a": shifted(-rng.permutation(rates)),
            "b": normal(batch, self.seq, self.groups * self.size),
            "c": normal(batch, self.seq, self.groups * self.size),
            "skip": normal(self.heads),
            "state": normal(batch, self.heads, self.size, self.width),
            "length": np.array(self.length, np.int64),
        }
        return hide_padding(given, self.op)

    def judge(self, given: Inputs) -> Judged:
        x, dt, a, b, c, skip, h = (v.astype(np.float64) for v in list(given.values())[:7])
        heads, size, width = h.shape[1:]
        y = np.zeros((*x.shape[:2], heads, width))
        magnitude, error, y_error = abs(h), np.zeros_like(h), np.zeros_like(y)
        for row, count in enumerate(given["length"]):
            for t in range(count):
                log = (dt[row, t] * a)[:, None, None]
                decay = np.exp(log)
                written = np.repeat(b[row, t].reshape(-1, size), heads // self.groups, 0)
                read = np.repeat(c[row, t].reshape(-1, size), heads // self.groups, 0)
                values = x[row, t].reshape(heads, 1, width)
                new = dt[row, t][:, None, None] * written[:, :, None] * values
                # The log is rounded, its power too; then products and a sum, of each step.
                error[row] = decay * error[row] + EPSILON * (
                    (2 - log) * decay * magnitude[row] + 3 * abs(new)
                )
                h[row] = decay * h[row] + new
                magnitude[row] = decay * magnitude[row] + abs(new)
                y[row, t] = (read[:, :, None] * h[row]).sum(1) + skip[:, None] * values[:, 0]
                seen = (abs(read)[:, :, None] * magnitude[row]).sum(1)
                y_error[row, t] = (abs(read)[:, :, None] * error[row]).sum(1)
                y_error[row, t] += EPSILON * (size + CHUNK) ** 0.5 * seen
                y_error[row, t] += EPSILON * abs(skip[:, None] * values[:, 0])
        state_error = error + EPSILON * CHUNK**0.5 * magnitude
        flat = (*x.shape[:2], heads * width)
        return Judged(y.reshape(flat), h, y_error.reshape(flat), state_error)


@dataclass(frozen=True)
class DeltaCall:
    seq: int
    heads: int
    key_heads: int
    size: int
    width: int
    length: tuple[int, ...]
    by_channel: bool = False
    fastest: float = 3.0  # logs of decays go down to about minus so much
    repeats: bool = False  # all keys of a head are alike
    op = "GatedDelta"

    @property
    def attributes(self) -> Mapping[str, int | float]:
        return {"num_heads": self.heads, "scale": self.size**-0.5}

    def inputs(self) -> Inputs:
        rng = np.random.default_rng(self.seq * 1000 + self.heads)
        batch = len(self.length)

        def unit() -> Array:
            shape = (batch, 1 if self.repeats else self.seq, self.key_heads, self.size)
            values = rng.standard_normal(shape)
            values = values / np.linalg.norm(values, axis=-1, keepdims=True)
            shape = (batch, self.seq, self.key_heads, self.size)
            flat = (batch, self.seq, self.key_heads * self.size)
            return shifted(np.broadcast_to(values, shape).reshape(flat))

        channels = self.heads * (self.size if self.by_channel else 1)
        rates = rng.permutation(np.geomspace(1e-4, 1, channels)) * self.fastest
        given = {
            "query": unit(),
            "key": unit(),
            "value": shifted(rng.standard_normal((batch, self.seq, self.heads * self.width))),
            "decay": shifted(-rates * rng.random((batch, self.seq, channels))),
            "beta": shifted(2 * rng.random((batch, self.seq, self.heads))),
            "state": shifted(rng.standard_normal((batch, self.heads, self.size, self.width))),
            "length": np.array(self.length, np.int64),
        }
        return hide_padding(given, self.op)

    def judge(self, given: Inputs) -> Judged:
        """Keys are of length 1 and beta is at most 2: a step lengthens no error, which can so be
        followed as the length of a column's. Each step adds roundings of the state, the value and
        of sums over the key's channels and the chunk's steps; they are independent of those
        before, so their squares add up."""
        query, key, value, decay, beta, h = (
            given[t.name].astype(np.float64) for t in OPS[self.op].inputs[:6]
        )
        batch, seq = query.shape[:2]
        each = self.heads // self.key_heads
        y = np.zeros((batch, seq, self.heads, self.width))
        y_error = np.zeros_like(y)
        error = np.zeros((batch, self.heads, self.width))
        roundings = EPSILON * (self.size + CHUNK) ** 0.5
        scale = self.size**-0.5
        for row, count in enumerate(given["length"]):
            for t in range(count):
                keys = np.repeat(key[row, t].reshape(-1, self.size), each, 0)
                queries = np.repeat(query[row, t].reshape(-1, self.size), each, 0) * scale
                values = value[row, t].reshape(self.heads, self.width)
                log = decay[row, t].reshape(self.heads, -1, 1)
                rate = beta[row, t][:, None]
                length = np.linalg.norm(h[row], axis=1)
                rounding = EPSILON * np.max(-log * np.exp(log), axis=1) + roundings
                added = rounding * (length + rate * (abs(values) + length))
                error[row] = np.hypot(np.max(np.exp(log), axis=1) * error[row], added)
                h[row] *= np.exp(log)
                known = (keys[:, :, None] * h[row]).sum(1)
                h[row] += keys[:, :, None] * (rate * (values - known))[:, None]
                y[row, t] = (queries[:, :, None] * h[row]).sum(1)
                seen = np.linalg.norm(h[row], axis=1) * roundings + error[row]
                y_error[row, t] = np.linalg.norm(queries, axis=1)[:, None] * seen
        flat = (batch, seq, self.heads * self.width)
        state_error = np.broadcast_to(error[:, :, None], h.shape)
        return Judged(y.reshape(flat), h, y_error.reshape(flat), state_error)
