"""Logits of one position and the tokens so far go in; the next token comes out.

Filters, their order and their rounding (float32) are those of transformers' logits processors, so
that a seedless comparison of the filtered scores is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. With every field at its default the choice is greedy.

    Sampling is on when any of temperature, top_k, top_p or min_p is given; temperature 0 is greedy
    whatever else is given. The repetition penalty applies to both.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0.0, math.inf)
        _require("top_p", self.top_p, 0.0, 1.0)
        _require("min_p", self.min_p, 0.0, 1.0)
        if self.top_k is not None and (not _is_int(self.top_k) or self.top_k < 0):
            raise SessionError(f"top_k is {self.top_k!r}; it must be a whole number, 0 for none")
        _require("repetition_penalty", self.repetition_penalty, 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise SessionError("repetition_penalty is 0; it must be above 0, 1 for none")

    @property
    def greedy(self) -> bool:
        given = (self.temperature, self.top_k, self.top_p, self.min_p)
        return self.temperature == 0 or all(value is None for value in given)

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty is not None and self.repetition_penalty != 1.0

    def filter(self, scores: Floats, seen: NDArray[np.bool_] | None) -> Floats:
        """The scores of one row [vocab] with the excluded tokens at -inf; the input is kept."""
        if self.repetition_penalty is not None and self.penalises and seen is not None:
            scores = penalise_repetition(scores, seen, self.repetition_penalty)
        if self.greedy:
            return scores
        if self.temperature is not None and self.temperature != 1.0:
            scores = scores / np.float32(self.temperature)
        if self.top_k:
            scores = keep_top_k(scores, self.top_k)
        if self.top_p is not None and self.top_p < 1.0:
            scores = keep_top_p(scores, self.top_p)
        if self.min_p is not None:
            scores = keep_min_p(scores, self.min_p)
        return scores


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _require(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    number = isinstance(value, int | float | np.floating | np.integer)
    if not number or isinstance(value, bool) or not low <= value <= high or math.isinf(value):
        upper = "" if math.isinf(high) else f" and at most {high:g}"
        raise SessionError(f"{name} is {value!r}; it must be a number of at least {low:g}{upper}")


def penalise_repetition(scores: Floats, seen: NDArray[np.bool_], penalty: float) -> Floats:
    """Tokens already seen lose: a negative score is multiplied, a positive one divided."""
    factor = np.float32(penalty)
    penalised = np.where(scores < 0, scores * factor, scores / factor)
    return np.where(seen, penalised, scores)


def keep_top_k(scores: Floats, k: int) -> Floats:
    """The k best scores; everything tied with the k-th stays too."""
    k = min(k, scores.size)
    threshold = np.partition(scores, scores.size - k)[scores.size - k]
    return _drop(scores, scores < threshold)


def keep_top_p(scores: Floats, top_p: float, min_tokens_to_keep: int = 1) -> Floats:
    """The smallest set of best tokens whose probability reaches top_p.

    Tokens are dropped from the least likely upwards while their sum is at most 1 - top_p. Sorting
    the values alone is several times faster than an argsort; of the tokens tied at the threshold
    those with the lowest index go first, as under a stable sort.
    """
    ascending = np.sort(scores)
    # Summed in double, compared in single: as torch does both.
    cumulative = np.cumsum(_softmax(ascending), dtype=np.float64).astype(np.float32)
    dropped = int(np.count_nonzero(cumulative <= np.float32(1.0 - top_p)))
    dropped = min(dropped, max(scores.size - min_tokens_to_keep, 0))
    if dropped == 0:
        return scores
    threshold = ascending[min(dropped, scores.size - 1)]
    remove = scores < threshold
    tied_to_drop = dropped - int(np.count_nonzero(remove))
    remove[np.flatnonzero(scores == threshold)[:tied_to_drop]] = True
    return _drop(scores, remove)


def keep_min_p(scores: Floats, min_p: float) -> Floats:
    """Tokens at least min_p times as likely as the likeliest."""
    probabilities = _softmax(scores)
    return _drop(scores, probabilities < np.float32(min_p) * probabilities.max())


def _softmax(scores: Floats) -> Floats:
    exponents = np.exp(scores - scores.max())
    return np.asarray(exponents / exponents.sum(), dtype=np.float32)


def _drop(scores: Floats, remove: NDArray[np.bool_]) -> Floats:
    return np.where(remove, np.float32(-np.inf), scores)


class Sampler:
    """Chooses the tokens of one row; its random stream belongs to the row, not to the batch."""

    def __init__(self, sampling: Sampling, seed: int | None, vocab_size: int) -> None:
        self._sampling = sampling
        self._random = None if sampling.greedy else np.random.Generator(np.random.Philox(seed))
        self._seen = np.zeros(vocab_size, dtype=np.bool_) if sampling.penalises else None

    def observe(self, tokens: Sequence[int]) -> None:
        """Count these tokens as seen, for the repetition penalty."""
        if self._seen is not None and len(tokens):
            self._seen[np.asarray(tokens, dtype=np.int64)] = True

    def choose(self, logits: Floats) -> int:
        """The next token for one row of logits [vocab]."""
        scores = self._sampling.filter(logits, self._seen)
        best = int(np.argmax(scores))  # argmax finds a NaN first, so this one test covers them all
        if math.isnan(scores[best]):
            raise SessionError(
                "the model gave logits that are not numbers (NaN); check the checkpoint's weights"
            )
        token = best if self._random is None else _draw(scores, best, self._random.random())
        self.observe((token,))
        return token


def _draw(scores: Floats, best: int, uniform: float) -> int:
    """Inverse transform sampling in double; one uniform number a token, whatever was filtered."""
    candidates = np.flatnonzero(scores > -np.inf)
    if candidates.size < 2:
        return best
    weights = np.exp(scores[candidates].astype(np.float64) - float(scores[best]))
    cumulative = np.cumsum(weights)
    position = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(candidates[min(position, candidates.size - 1)])
