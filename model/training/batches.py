"""Tokenised documents go in; the batch of any step comes out, the same one for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgewright.artifacts.errors import TrainingError


class Batches:
    """Each epoch joins the documents in a new order and cuts them at a new phase into rows of
    `context` tokens (and one more, to be predicted), taken in a new order."""

    def __init__(self, documents: Sequence[Tensor], rows: int, context: int, seed: int) -> None:
        self._documents = documents
        self._rows, self._context, self._seed = rows, context, seed
        total = sum(len(document) for document in documents)
        # One context less than there is, so that every phase gives the same number of rows.
        self.rows_per_epoch = (total - 1) // context - 1
        if self.rows_per_epoch < 1:
            raise TrainingError(
                f"the text has {total} tokens, a context of {context} needs at least"
                f" {2 * context + 1}: give more text or a smaller --context"
            )
        self._epoch = -1
        self._table = torch.empty(0)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [rows, context]."""
        rows = [self._row(step * self._rows + i) for i in range(self._rows)]
        taken = torch.stack(rows).long()
        return taken[:, :-1], taken[:, 1:]

    def _row(self, index: int) -> Tensor:
        epoch, row = divmod(index, self.rows_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._table = epoch, self._shuffled(epoch)
        return self._table[row]

    def _shuffled(self, epoch: int) -> Tensor:
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._documents), generator=draw).tolist()
        joined = torch.cat([self._documents[i] for i in order])
        phase = int(torch.randint(self._context, (), generator=draw))
        table = joined[phase:].unfold(0, self._context + 1, self._context)[: self.rows_per_epoch]
        return table[torch.randperm(self.rows_per_epoch, generator=draw)]
