"""Floats go in, what a cache of a dtype holds of them comes out, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.custom_ops import int8_rows_torch

Array = NDArray[Any]


def cached(values: Array, dtype: str) -> Array:
    if dtype != "int8":
        return values.astype(dtype)
    rows: Array = int8_rows_torch.encode(torch.from_numpy(values.astype(np.float32))).numpy()
    return rows


def held(cache: Array) -> Array:
    """As float64."""
    if cache.dtype == np.int8:
        cache = int8_rows_torch.decode(torch.from_numpy(cache)).numpy()
    return cache.astype(np.float64)


def unseen(dtype: str) -> float:
    """Fills what no one may look at: NaN, or bytes that make a row of the largest values."""
    return 127 if dtype == "int8" else float("nan")
