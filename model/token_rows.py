"""A checkpoint's tokenizer and documents go in; rows of token ids come out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.checkpoint import Checkpoint


def checkpoint_tokenizer(checkpoint: Checkpoint, why: str) -> Tokenizer:
    for path in checkpoint.tokenizer_files:
        if path.name == "tokenizer.json":
            try:
                return Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises its own bare Exception
                raise CheckpointError(f"{path} is not a tokenizer: {error}") from None
    raise CheckpointError(f"{checkpoint.path} has no tokenizer.json: {why}")


def check_ids(rows: Tensor, vocab_size: int) -> None:
    highest = int(rows.max())
    if highest >= vocab_size:
        raise CheckpointError(f"the tokenizer gives token {highest}, the model has {vocab_size}")


def joined(tokenizer: Tokenizer, documents: Sequence[str], most_tokens: int) -> Tensor:
    """int32 ids of one document after the other, until there are so many."""
    parts: list[Tensor] = []
    count = 0
    for document in documents:
        ids = torch.tensor(tokenizer.encode(document).ids, dtype=torch.int32)
        parts.append(ids)
        count += len(ids)
        if count >= most_tokens:
            break
    return torch.cat(parts)[:most_tokens] if parts else torch.empty(0, dtype=torch.int32)
