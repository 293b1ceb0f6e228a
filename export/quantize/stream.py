"""A lazy model goes in; its layers come out one at a time, each with its weights in memory for as
long as it is used, and run on the hidden states of whole texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.states import StateSpec
from edgewright.model.call import Call
from edgewright.model.decoder import Layer
from edgewright.model.linear import scaled
from edgewright.model.loading import LazyModel, build_decoder
from edgewright.model.mixers.shared_block import SharedBlock
from edgewright.model.rope import Rope

# Other values for a parameter, where there are some: a weight that was quantised already.
Values = Callable[[str], Tensor | None]

_STATE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
_BATCH_TOKENS = 2048


class LayerStream:
    def __init__(self, model: LazyModel) -> None:
        self.model = model
        self.config = model.config.with_cache("float32")
        self.decoder = build_decoder(self.config).eval()
        first: dict[int, str] = {}
        self._names: dict[str, str] = {}  # of each place, the name its weight is stored under
        for named in (self.decoder.named_parameters, self.decoder.named_buffers):
            for place, held in named(remove_duplicate=False):
                self._names[place] = first.setdefault(id(held), place)
        # A constant of ours is the same in every layer, and small.
        for place, name in self._names.items():
            if name in model.weights and name not in model.parameters:
                self._put(place, model.weights[name].read())
        self.sees_embedding = any(
            isinstance(module, SharedBlock) for module in self.decoder.modules()
        )

    def __len__(self) -> int:
        return len(self.decoder.layers)

    def names_under(self, prefix: str) -> dict[str, str]:
        """Each parameter's place in a part of the decoder → its name among the model's."""
        parameters = self.model.parameters
        return {
            place: name
            for place, name in self._names.items()
            if place.startswith(prefix) and name in parameters
        }

    def used_in_several(self, names: Sequence[str]) -> list[str]:
        """A tied head, and weights that layers share."""
        places = [*self._names.values()]
        tied = {"embedding.weight"} if self.config.tied_head else set()
        return [name for name in names if places.count(name) > 1 or name in tied]

    @contextmanager
    def loaded(
        self, *prefixes: str, values: Values = lambda _: None
    ) -> Iterator[dict[str, Tensor]]:
        """These parts' weights in memory, as float32, by name."""
        places = {p: n for prefix in prefixes for p, n in self.names_under(prefix).items()}
        kept = {}
        for place, name in places.items():
            if (held := self.parameter(place)).is_meta:
                kept[place] = held
                found = values(name)
                if found is None:
                    found = self.model.weights[name].read().float()
                self._put(place, found)
        try:
            yield {name: self.parameter(place) for place, name in places.items()}
        finally:
            for place, held in kept.items():
                self._put(place, held)

    def hold(self) -> None:
        """All weights in memory, for good."""
        for place, name in self.names_under("").items():
            if self.parameter(place).is_meta:
                self._put(place, self.model.weights[name].read().float())

    def parameter(self, place: str) -> Tensor:
        return self.decoder.get_parameter(place)

    def layer(self, index: int) -> Layer:
        return cast(Layer, self.decoder.layers[index])

    def embed(self, ids: Tensor) -> Tensor:
        """[batch, seq] → [batch, seq, hidden], as the first layer gets it."""
        return scaled(self.decoder.embedding(ids), self.config.embedding_scale)

    def call(self, x: Tensor, embedded: Tensor | None) -> Call:
        batch, seq = x.shape[:2]
        start = torch.zeros(batch, dtype=torch.int64)
        ropes = [cast(Rope, rope) for rope in self.decoder.ropes]
        length = torch.full((batch,), seq)
        return Call.prepare(x if embedded is None else embedded, start, length, ropes)

    def run_layer(self, index: int, x: Tensor, embedded: Tensor | None) -> Tensor:
        layer = self.layer(index)
        states = fresh_states(layer.states(""), *x.shape[:2])
        y: Tensor = layer(x, self.call(x, embedded), states)[0]
        return y

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.decoder._logits(self.decoder.norm(x))
        return found

    def _put(self, place: str, value: Tensor) -> None:
        owner_name, _, leaf = place.rpartition(".")
        owner = self.decoder.get_submodule(owner_name)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)


def fresh_states(specs: Sequence[StateSpec], batch: int, tokens: int) -> list[Tensor]:
    return [
        torch.zeros(spec.resolve(batch, tokens), dtype=_STATE_DTYPES[spec.dtype]) for spec in specs
    ]


@torch.no_grad()
def drawn_tokens(logits: Tensor, draw: torch.Generator) -> Tensor:
    """[tokens, vocabulary] → [tokens, 1], each by its probability."""
    if not logits.isfinite().all():
        raise ExportError(
            "this model's predictions are not finite (NaN or infinity): it cannot be quantised"
        )
    return logits.softmax(-1).multinomial(1, generator=draw)


def batches(rows: int, tokens: int, limit_tokens: int = _BATCH_TOKENS) -> Iterator[slice]:
    """So many rows at a time that a batch has about as many tokens as pays."""
    step = max(1, limit_tokens // tokens)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))
