"""A checkpoint and the options go in; rows of tokens to calibrate with come out."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewright.artifacts.errors import ExportError
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.model.loading import LazyModel
from edgewright.model.token_rows import check_ids, checkpoint_tokenizer, joined
from edgewright.model.training.corpus import read_corpus

_ROW_TOKENS = 512
_LEAST_TOKENS = 128
_USUAL_TOKENS = 32768
# Tuning sees every row of the text once before it sees one again.
_MOST_TOKENS = 4 << 20


@dataclass(frozen=True)
class CalibrationText:
    every: Tensor  # int32 [n, tokens]: all of the text
    sample: Tensor  # int64 [m, tokens]: what statistics are taken of
    sha256: str


def read_text(model: LazyModel, options: QuantizeOptions) -> CalibrationText | None:
    """Of a directory, and of `stdlib`, the documents that training holds out are left out here
    too, so that they can tell how good the result is."""
    if options.text is None:
        return None
    documents = list(read_corpus([options.text]).train)
    for document in documents:
        if "\0" in document:
            raise ExportError(f"--text {options.text} is not text: it has NUL bytes")
    random.Random(options.seed).shuffle(documents)
    tokenizer = checkpoint_tokenizer(model.checkpoint, "the calibration text cannot be read")
    ids = joined(tokenizer, documents, _MOST_TOKENS)
    least = min(_LEAST_TOKENS, model.config.max_context)
    if len(ids) < least:
        raise ExportError(
            f"--text {options.text} has {len(ids)} tokens to calibrate with; at least {least} are"
            " needed"
        )
    check_ids(ids, model.config.vocab_size)
    tokens = min(_ROW_TOKENS, model.config.max_context, len(ids))
    every = ids[: len(ids) // tokens * tokens].view(-1, tokens)
    wanted = max(1, (options.tokens or _USUAL_TOKENS) // tokens)
    step = max(1, len(every) // wanted)
    sample = every[::step][:wanted].long()
    digest = hashlib.sha256(every.numpy().tobytes()).hexdigest()
    return CalibrationText(every, sample, digest)


def first_rows(rows: Tensor, tokens: int) -> Tensor:
    """Evenly chosen rows that have about so many tokens."""
    wanted = max(1, min(len(rows), tokens // rows.shape[1]))
    return rows[torch.arange(wanted) * len(rows) // wanted]
