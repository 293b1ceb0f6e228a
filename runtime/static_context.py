"""Token ids go in, one row at a time and padded to the graphs' sizes; the buffers advance and the
logits asked for come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgewright.artifacts.states import StateSpec
from edgewright.runtime.budget import Budget
from edgewright.runtime.context import Context, Logits
from edgewright.runtime.ort import Array
from edgewright.runtime.static_engine import Bound, StaticEngine, StaticRole
from edgewright.runtime.token_input import Ids


class StaticContext(Context):
    """A prefill graph for chunks and a decode graph for single tokens. What a graph gives for a
    state is kept only when it is taken over, so that a chunk can be run again for other logits."""

    def __init__(self, engine: StaticEngine, batch: int, limit: int, budget: Budget | None) -> None:
        self._graphs = engine
        self._bound: dict[tuple[StaticRole, int], Bound] = {}
        super().__init__(engine, batch, limit, budget)
        self._logits: Logits = np.zeros((batch, engine.vocab_size), np.float32)

    def prefill(self, rows: Sequence[Ids], chunk: int) -> Logits:
        self.check_room([len(row) for row in rows])
        result = np.full((self.batch, self.engine.vocab_size), np.nan, dtype=np.float32)
        for row, ids in enumerate(rows):
            for piece in self._pieces(ids, chunk):
                result[row] = self._read(row, piece, [len(piece) - 1])[0]
        return result

    def all_logits(self, ids: Ids, chunk: int) -> Logits:
        self.check_room([len(ids)])
        found = [self._read(0, piece, range(len(piece))) for piece in self._pieces(ids, chunk)]
        return np.concatenate(found)

    def step(self, tokens: Sequence[int], active: Sequence[bool] | None = None) -> Logits:
        for row, token in enumerate(tokens):
            if active is None or active[row]:
                self.check_room([int(other == row) for other in range(self.batch)])
                self._logits[row] = self._read(row, np.array([token]), [0])[0]
        return self._logits

    def _pieces(self, ids: Ids, chunk: int) -> Iterator[Ids]:
        size = min(chunk, self._graphs.sizes.chunk)
        for offset in range(0, len(ids), size):
            yield ids[offset : offset + size]

    def _read(self, row: int, ids: Ids, wanted: Sequence[int]) -> Logits:
        """Continue a row with these tokens; the logits at each of the places wanted [n, vocab]."""
        role: StaticRole = "decode" if len(ids) == 1 else "prefill"
        bound = self._bind(role, row)
        bound.ids[:] = 0
        bound.ids[0, : len(ids)] = ids
        bound.start[0], bound.length[0] = self._lengths[row], len(ids)
        found = np.empty((len(wanted), self.engine.vocab_size), np.float32)
        for index, place in enumerate(wanted):
            bound.wanted[0, 0] = place
            self._graphs.run(role, bound)
            found[index] = bound.logits[0, 0]
        self._take_over(row, bound, len(ids))
        self._lengths[row] += len(ids)
        self.tokens[row].extend(ids.tolist())
        return found

    def _take_over(self, row: int, bound: Bound, count: int) -> None:
        held = int(self._lengths[row])
        states = zip(self._graphs.layout, self._buffers.arrays, bound.given, strict=True)
        for spec, array, given in states:
            mine = array[row : row + 1]
            if spec.growth == "replace":
                mine[...] = given
            elif spec.update == "delta":
                mine[_tokens(spec, held, held + count)] = given[_tokens(spec, 0, count)]

    def _bind(self, role: StaticRole, row: int) -> Bound:
        if (role, row) not in self._bound:
            past: tuple[Array, ...] = tuple(array[row : row + 1] for array in self._buffers.arrays)
            self._bound[role, row] = self._graphs.bind(role, past)
        return self._bound[role, row]

    def _capacity_for(self, needed: int, current: int) -> int:
        capacity = self._graphs.sizes.capacity
        if self._budget is not None:
            self._budget.capacity(self.engine.layout, self.batch, capacity, capacity)
        return capacity


def _tokens(spec: StateSpec, first: int, last: int) -> tuple[slice, ...]:
    return tuple(slice(first, last) if dim == "capacity" else slice(None) for dim in spec.shape)
