"""Token ids go in; the buffers advance and the logits asked for come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.budget import Budget
from edgewright.runtime.context import Context, Logits
from edgewright.runtime.engine import Engine
from edgewright.runtime.ort import Binding
from edgewright.runtime.token_input import Ids


@dataclass(frozen=True)
class _DecodePlan:
    """One token a row, bound once: a step writes ids and lengths in place and runs."""

    ids: Ids  # [batch, 1]
    length: Ids  # [batch]
    logits: Logits  # [batch, 1, vocab]
    binding: Binding


class StepContext(Context):
    """One graph for any number of rows and tokens; buffers grow with what they hold."""

    def __init__(self, engine: Engine, batch: int, limit: int, budget: Budget | None) -> None:
        super().__init__(engine, batch, limit, budget)
        self._graph = engine
        self._plan: _DecodePlan | None = None

    def prefill(self, rows: Sequence[Ids], chunk: int) -> Logits:
        """The logits after each row's last token [batch, vocab]; NaN for a row without tokens."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.check_room(lengths.tolist())
        self._reserve(lengths)
        total = int(lengths.max())
        result = np.full((self.batch, self.engine.vocab_size), np.nan, dtype=np.float32)
        for offset in range(0, total, chunk):
            width = min(chunk, total - offset)
            ids, length = _chunk_of(rows, lengths, offset, width)
            last = np.maximum(length - 1, 0)[:, None]
            logits = self._feed(ids, length, last, is_last=offset + width == total)
            ended = (lengths > offset) & (lengths <= offset + width)
            result[ended] = logits[ended, 0]
        return result

    def all_logits(self, ids: Ids, chunk: int) -> Logits:
        """The logits after every token of a single row [len(ids), vocab]."""
        self.check_room([len(ids)])
        self._reserve(np.array([len(ids)], dtype=np.int64))
        result: Logits = np.empty((1, len(ids), self.engine.vocab_size), dtype=np.float32)
        for offset in range(0, len(ids), chunk):
            piece = np.ascontiguousarray(ids[None, offset : offset + chunk])
            wanted = np.arange(piece.shape[1], dtype=np.int64)[None]
            length = np.array([piece.shape[1]], dtype=np.int64)
            # A slice of a single row is contiguous: the graph writes the result itself.
            logits = result[:, offset : offset + chunk]
            self._feed(piece, length, wanted, logits, is_last=offset + chunk >= len(ids))
        flat: Logits = result[0]
        return flat

    def _feed(
        self, ids: Ids, length: Ids, wanted: Ids, logits: Logits | None = None, *, is_last: bool
    ) -> Logits:
        """Run [batch, seq] ids, right padded; gives logits [batch, wanted, vocab]."""
        if logits is None:
            logits = np.empty((*wanted.shape, self.engine.vocab_size), dtype=np.float32)
        tokens = (ids, self._lengths, length, wanted)
        self._run(self._graph.bind(tokens, logits, self._buffers), shrink=is_last)
        self._lengths += length
        for row, count in enumerate(length.tolist()):
            self.tokens[row].extend(ids[row, :count].tolist())
        return logits

    def step(self, tokens: Sequence[int], active: Sequence[bool] | None = None) -> Logits:
        """One token a row, none where inactive. The logits [batch, vocab] are valid until the
        next step."""
        if int(self._lengths.max()) >= self._buffers.capacity:
            self._reserve(np.ones(self.batch, dtype=np.int64))
        plan = self._plan or self._plan_decoding()
        plan.ids[:, 0] = tokens
        plan.length[:] = 1 if active is None else active
        self._run(plan.binding)
        self._lengths += plan.length
        for row, token in enumerate(tokens):
            if active is None or active[row]:
                self.tokens[row].append(int(token))
        return plan.logits[:, 0]

    def _reserve(self, more: Ids) -> None:
        needed = int((self._lengths + more).max())
        if needed <= self._buffers.capacity:
            return
        capacity = self._capacity_for(needed, self._buffers.capacity)
        self._buffers.grow(capacity, int(self._lengths.max()))
        self._plan = None

    def _plan_decoding(self) -> _DecodePlan:
        ids: Ids = np.zeros((self.batch, 1), dtype=np.int64)
        length: Ids = np.ones(self.batch, dtype=np.int64)
        wanted: Ids = np.zeros((self.batch, 1), dtype=np.int64)
        logits: Logits = np.empty((self.batch, 1, self.engine.vocab_size), dtype=np.float32)
        binding = self._graph.bind((ids, self._lengths, length, wanted), logits, self._buffers)
        self._plan = _DecodePlan(ids, length, logits, binding)
        return self._plan

    def _run(self, binding: Binding, shrink: bool = False) -> None:
        self._check_intact()
        try:
            self._graph.run(binding, shrink)
        except SessionError:
            # Positions past the length do no harm, but a replaced state may be half of each.
            self._lost = any(spec.growth == "replace" for spec in self.engine.layout)
            raise


def _chunk_of(rows: Sequence[Ids], lengths: Ids, offset: int, width: int) -> tuple[Ids, Ids]:
    ids: Ids = np.zeros((len(rows), width), dtype=np.int64)
    length = np.clip(lengths - offset, 0, width)
    for row, count in enumerate(length.tolist()):
        ids[row, :count] = rows[row][offset : offset + count]
    return ids, length
