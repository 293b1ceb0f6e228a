"""A lazy model goes in; rows of tokens that it makes up itself come out, to calibrate with where no
text is given.

They begin as any tokens at all. Then, round after round, each is drawn anew from what the model
expects after those before it: the first n tokens of a row are the model's own words after n rounds,
and the others are already much like them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from edgewright.export.quantize.stream import LayerStream, batches, drawn_tokens
from edgewright.export.quantize.text import CalibrationText
from edgewright.model.loading import LazyModel

_ROUNDS = 4
_ROW_TOKENS = 256
# A round's multiplications; small models get as many tokens as a text would give.
_WORK, _MOST_TOKENS = 4e12, 32768
_MOST_PARAMETERS = 2_000_000_000

Progress = Callable[[str, int, int], None]


def made_up_text(
    model: LazyModel, tokens: int | None, seed: int, progress: Progress
) -> CalibrationText | None:
    """None where the model is so large that this would take longer than it is worth."""
    if model.parameter_count > _MOST_PARAMETERS:
        return None
    length = min(_ROW_TOKENS, model.config.max_context)
    most = min(tokens or _MOST_TOKENS, _MOST_TOKENS, int(_WORK / model.parameter_count))
    draw = torch.Generator().manual_seed(seed)
    shape = (max(1, most // length), length)
    ids = torch.randint(model.config.vocab_size, shape, generator=draw)
    stream = LayerStream(model)
    for done in range(_ROUNDS):
        progress("making up text", done, _ROUNDS)
        ids[:, 1:] = _expected(stream, ids, draw)[:, :-1]
    progress("making up text", _ROUNDS, _ROUNDS)
    return CalibrationText(ids.int(), ids, hashlib.sha256(ids.numpy().tobytes()).hexdigest())


@torch.no_grad()
def _expected(stream: LayerStream, ids: Tensor, draw: torch.Generator) -> Tensor:
    """For each token, one that the model may put after it."""
    with stream.loaded("embedding."):
        x = stream.embed(ids)
    embedded = x.clone() if stream.sees_embedding else None
    for index in range(len(stream)):
        with stream.loaded(f"layers.{index}."):
            for part in batches(*ids.shape):
                seen = None if embedded is None else embedded[part]
                x[part] = stream.run_layer(index, x[part], seen)
    head = "embedding." if stream.config.tied_head else "head."
    with stream.loaded("norm.", head):
        return torch.stack([drawn_tokens(stream.logits(row[None])[0], draw)[:, 0] for row in x])
