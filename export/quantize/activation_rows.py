"""A model and what was asked for go in; rows of tokens to measure its activations on come out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError
from edgewright.export.quantize.made_up import made_up_text
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.text import first_rows, read_text
from edgewright.model.loading import LazyModel

Progress = Callable[[str, int, int], None]

# Ranges settle long before statistics of weights do.
_USUAL_TOKENS = 2048


def activation_rows(
    model: LazyModel, options: QuantizeOptions, progress: Progress
) -> Callable[[], NDArray[np.int64]]:
    """Made when they are first asked for: of the text, or what the model makes up."""

    @cache
    def rows() -> NDArray[np.int64]:
        tokens = options.tokens or _USUAL_TOKENS
        found = read_text(model, options) or made_up_text(model, tokens, options.seed, progress)
        if found is None:
            raise ExportError(
                f"{model.checkpoint.path} is too large to make up a text to measure activations on:"
                " give --text"
            )
        return first_rows(found.sample, tokens).numpy()

    return rows
