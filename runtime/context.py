"""What contexts share: the states of one batch, and how many tokens each of its rows holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import ContextLengthError, SessionError
from edgewright.artifacts.states import StateLayout
from edgewright.runtime.budget import Budget
from edgewright.runtime.buffers import StateBuffers, grown_capacity
from edgewright.runtime.state import State
from edgewright.runtime.token_input import Ids

Logits = NDArray[np.float32]


class Model(Protocol):
    """What every engine says of its graphs."""

    @property
    def layout(self) -> StateLayout: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


def check_fits(row: int, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise ContextLengthError(
            f"row {row}: {tokens} tokens, but the context holds {limit}; use fewer tokens, or "
            "open the session with a larger capacity"
        )


class Context(ABC):
    def __init__(self, engine: Model, batch: int, limit: int, budget: Budget | None) -> None:
        self.engine = engine
        self.batch = batch
        self.limit = limit
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self._budget = budget
        self._lengths: Ids = np.zeros(batch, dtype=np.int64)
        self._buffers = self._allocate(0)
        self._lost = False

    @abstractmethod
    def prefill(self, rows: Sequence[Ids], chunk: int) -> Logits:
        """The logits after each row's last token [batch, vocab]; NaN for a row without tokens."""

    @abstractmethod
    def all_logits(self, ids: Ids, chunk: int) -> Logits:
        """The logits after every token of a single row [len(ids), vocab]."""

    @abstractmethod
    def step(self, tokens: Sequence[int], active: Sequence[bool] | None = None) -> Logits:
        """One token a row, none where inactive. The logits [batch, vocab] are valid until the
        next step."""

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.tokens]

    @property
    def state_bytes(self) -> int:
        return self._buffers.nbytes

    def check_room(self, lengths: Sequence[int]) -> None:
        """Before any work: every row with so many more tokens must fit."""
        for row, (held, more) in enumerate(zip(self.lengths, lengths, strict=True)):
            check_fits(row, held + more, self.limit)

    def snapshot(self) -> State:
        """A copy of the part in use, that nothing changes any more."""
        view = self._view()
        arrays = tuple(array.copy() for array in view.arrays)
        for array in arrays:
            array.flags.writeable = False
        return replace(view, arrays=arrays)

    def copy(self) -> Self:
        """A context of its own, with the same tokens."""
        twin = type(self)(self.engine, self.batch, self.limit, self._budget)
        twin.restore(self._view())
        return twin

    def _view(self) -> State:
        self._check_intact()
        tokens = tuple(tuple(row) for row in self.tokens)
        return State(self.engine.fingerprint, tokens, self._buffers.used(max(self.lengths)))

    def restore(self, state: State) -> None:
        """Into a context that is fresh and has as many rows."""
        self._buffers = self._allocate(max(state.lengths))
        self._buffers.load(state.arrays)
        self._lengths[:] = state.lengths
        self.tokens = [list(row) for row in state.tokens]

    def clear(self) -> None:
        """Forget every token and keep the memory."""
        self._buffers.clear(int(self._lengths.max()) if not self._lost else self._buffers.capacity)
        self._lengths[:] = 0
        self.tokens = [[] for _ in range(self.batch)]
        self._lost = False

    def _allocate(self, used: int) -> StateBuffers:
        return StateBuffers(self.engine.layout, self.batch, self._capacity_for(max(used, 1), 0))

    def _capacity_for(self, needed: int, current: int) -> int:
        wanted = grown_capacity(needed, current, self.limit)
        if self._budget is None:
            return wanted
        return self._budget.capacity(self.engine.layout, self.batch, needed, wanted)

    def _check_intact(self) -> None:
        if self._lost:
            raise SessionError("an earlier run failed and left the state unknown; reset or resume")
