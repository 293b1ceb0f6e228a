"""Logits and a context go in; new tokens come out, one a row and step, until all have ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.context import Context, Logits
from edgewright.runtime.sampling import Sampler, Sampling
from edgewright.runtime.text import StopScanner, TextCodec, TextStream


@dataclass(frozen=True)
class Ending:
    """What ends a row: a number of tokens, an id, or a string in its text."""

    max_new_tokens: int
    stop_ids: frozenset[int]
    stops: tuple[str, ...]


@dataclass
class Row:
    """One row under way. `text` is there when someone reads it, or a stop string looks for it."""

    sampler: Sampler
    ending: Ending
    room: int
    text: RowText | None = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self.ended = self.room < 1

    def take(self, logits: Logits) -> str:
        """Choose the next token; returns the text that is now certain."""
        token = self.sampler.choose(logits)
        self.tokens.append(token)
        stop = token in self.ending.stop_ids
        self.ended = stop or len(self.tokens) >= self.room
        if self.text is None:
            return ""
        told = "" if stop else self.text.push(token)
        if self.text.stopped:
            self.ended = True
        elif self.ended:
            told += self.text.finish()
        return told


class RowText:
    """A row's text as it becomes certain: whole characters, and nothing of a stop string."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self._stream = stream
        self._scanner = StopScanner(stops)

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def push(self, token: int) -> str:
        return self._scanner.push(self._stream.push(token))

    def finish(self) -> str:
        return self._scanner.push(self._stream.finish()) + self._scanner.finish()


def make_ending(
    max_new_tokens: int,
    stop_ids: int | Sequence[int] | None,
    stop: str | Sequence[str] | None,
    eos_ids: Sequence[int],
) -> Ending:
    if not _is_whole(max_new_tokens) or max_new_tokens < 0:
        raise SessionError(f"max_new_tokens is {max_new_tokens!r}; 0 or more is required")
    given = eos_ids if stop_ids is None else stop_ids
    ids = tuple(given) if isinstance(given, Iterable) else (given,)  # a single id is one too
    if not all(_is_whole(token) and token >= 0 for token in ids):
        raise SessionError(f"stop_ids is {stop_ids!r}; token ids are required")
    texts = () if stop is None else stop
    stops = tuple(texts) if isinstance(texts, Iterable) and not isinstance(texts, str) else (texts,)
    if not all(isinstance(text, str) and text for text in stops):
        raise SessionError(f"stop is {stop!r}; strings of at least one character are required")
    return Ending(int(max_new_tokens), frozenset(int(token) for token in ids), stops)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def make_rows(
    context: Context,
    sampling: Sampling,
    seeds: Sequence[int | None],
    ending: Ending,
    codec: TextCodec | None,
) -> list[Row]:
    """One row for each of the context's; each with a random stream and a text of its own."""
    rows = []
    for tokens, seed in zip(context.tokens, seeds, strict=True):
        sampler = Sampler(sampling, seed, context.engine.vocab_size)
        sampler.observe(tokens)
        text = None if codec is None else RowText(codec.stream(tokens), ending.stops)
        # The last token is chosen but never fed, so it needs no place.
        room = min(ending.max_new_tokens, context.limit - len(tokens) + 1)
        rows.append(Row(sampler, ending, room, text))
    return rows


def make_seeds(seed: int | Sequence[int] | None, batch: int) -> list[int | None]:
    """A row with a given seed draws the same tokens whatever batch it is in."""
    seeds: list[int | None] = list(seed) if isinstance(seed, Sequence) else [seed] * batch
    if len(seeds) != batch:
        raise SessionError(f"{len(seeds)} seeds for {batch} rows; one, or one a row, is required")
    if not all(value is None or (_is_whole(value) and value >= 0) for value in seeds):
        raise SessionError(f"seed is {seed!r}; whole numbers of 0 or more are required")
    return seeds


def advance(context: Context, rows: Sequence[Row], logits: Logits) -> Iterator[list[str]]:
    """After each step, the text that became certain for each row ("" for one that has ended).

    The last token of a row is chosen but not fed: the context holds all that led to it.
    """
    active = [not row.ended for row in rows]
    while any(active):
        pairs = zip(rows, logits, active, strict=True)
        yield [row.take(scores) if on else "" for row, scores, on in pairs]
        active = [not row.ended for row in rows]
        if any(active):
            tokens = [row.tokens[-1] if row.tokens else 0 for row in rows]
            logits = context.step(tokens, active)
