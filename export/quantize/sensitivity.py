"""A streamed model and rows of tokens go in; how much the model's own predictions change when a
weight does comes out, one layer's weights in memory at a time.

The second derivative of the KL divergence at the model itself is Fisher's information: the mean
square of the gradients of log p(y) for tokens y drawn from the model. Of each matrix only the sums
over rows and over columns are kept: F[n, k] is about rows[n] columns[k].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgewright.export.quantize.observe import Hessians
from edgewright.export.quantize.stream import LayerStream, drawn_tokens

EMBEDDING = "embedding.weight"


@dataclass(frozen=True)
class Sensitivity:
    """sum(rows[n] columns[k] d[n, k]²) is the KL divergence, in nats a token, that errors d in the
    matrix cause. Stacks have a first dimension more."""

    rows: Tensor  # float32 [..., N]
    columns: Tensor  # float32 [..., K]


class _Squares:
    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}

    def add(self, name: str, gradient: Tensor) -> None:
        square = gradient.float().square()
        self.add_sums(name, square.sum(-1), square.sum(-2))

    def add_sums(self, name: str, rows: Tensor, columns: Tensor) -> None:
        for sums, new in ((self._rows, rows), (self._columns, columns)):
            sums[name] = sums[name] + new.double() if name in sums else new.double()

    def of(self, name: str, tokens: int) -> Sensitivity:
        rows, columns = self._rows[name], self._columns[name]
        total = columns.sum(-1, keepdim=True).clamp_min(1e-30)
        return Sensitivity((rows / (2 * tokens)).float(), (columns / total).float())


def measure(
    stream: LayerStream,
    ids: Tensor,  # [rows, tokens]
    names: Sequence[str],
    hessians: Hessians,
    seed: int,
    work: Path,
    advance: Callable[[int], None],
) -> Mapping[str, Sensitivity]:
    """`hessians` watches the layers on the way back, where all that they run is run again."""
    count, tokens = ids.shape
    wanted, squares = set(names), _Squares()
    file = work / "hidden.bin"
    shape = (len(stream) + 1, count, tokens, stream.config.hidden_size)
    hidden = np.memmap(file, np.float32, "w+", shape=shape)
    try:
        _forward(stream, ids, hidden, advance)
        gradient = _head(stream, hidden[-1], wanted, squares, hessians, seed)
        for index in reversed(range(len(stream))):
            prefix = f"layers.{index}."
            with stream.loaded(prefix) as held, hessians.watching(held):
                weights = {name: weight for name, weight in held.items() if name in wanted}
                for row in range(count):
                    gradient[row] = _back(stream, index, hidden, row, gradient, weights, squares)
            advance(2)
        _embedding(stream, ids, gradient, squares)
    finally:
        del hidden
        file.unlink()
    return {name: squares.of(name, ids.numel()) for name in names}


def _forward(
    stream: LayerStream, ids: Tensor, hidden: np.memmap, advance: Callable[[int], None]
) -> None:
    with torch.no_grad():
        with stream.loaded("embedding."):
            for row, each in enumerate(ids):
                hidden[0, row] = stream.embed(each[None])[0]
        for index in range(len(stream)):
            with stream.loaded(f"layers.{index}."):
                for row in range(len(ids)):
                    x, embedded = (_row(hidden[at], row) for at in (index, 0))
                    hidden[index + 1, row] = stream.run_layer(index, x, embedded)[0]
            advance(1)


def _head(
    stream: LayerStream,
    last: np.ndarray,
    wanted: set[str],
    squares: _Squares,
    hessians: Hessians,
    seed: int,
) -> Tensor:
    """The gradients [rows, tokens, hidden] at the last layer's result."""
    draw = torch.Generator().manual_seed(seed)
    tied = stream.config.tied_head
    name = EMBEDDING if tied else "head.weight"
    gradient = torch.empty(last.shape)
    parts = ("norm.", "embedding." if tied else "head.")
    with stream.loaded(*parts) as held, hessians.watching(held):
        weight = held[name].requires_grad_(True)
        for row in range(len(last)):
            x = _row(last, row).requires_grad_(True)
            logits = stream.logits(x)
            drawn = drawn_tokens(logits[0], draw)
            loss = -logits[0].log_softmax(-1).gather(-1, drawn).sum()
            of_x, of_weight = torch.autograd.grad(loss, (x, weight))
            gradient[row] = of_x[0]
            if name in wanted:
                squares.add(name, of_weight)
    return gradient


def _back(
    stream: LayerStream,
    index: int,
    hidden: np.memmap,
    row: int,
    gradient: Tensor,
    weights: Mapping[str, Tensor],
    squares: _Squares,
) -> Tensor:
    x, embedded = (_row(hidden[at], row) for at in (index, 0))
    x.requires_grad_(True)
    for weight in weights.values():
        weight.requires_grad_(True)
    y = stream.run_layer(index, x, embedded)
    found = torch.autograd.grad(y, (x, *weights.values()), gradient[row][None], allow_unused=True)
    for name, of_weight in zip(weights, found[1:], strict=True):
        if of_weight is not None:
            squares.add(name, of_weight)
    before = found[0]
    assert before is not None
    return before[0]


def _embedding(stream: LayerStream, ids: Tensor, gradient: Tensor, squares: _Squares) -> None:
    """A row of the table is met at the tokens it stands for."""
    square = (gradient * stream.config.embedding_scale).square().flatten(0, 1)
    by_token = torch.zeros(stream.config.vocab_size)
    by_token.index_add_(0, ids.flatten(), square.sum(-1))
    squares.add_sums(EMBEDDING, by_token, square.sum(0))


def _row(states: np.ndarray, row: int) -> Tensor:
    return torch.from_numpy(np.array(states[row]))[None]
