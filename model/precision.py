"""Where arithmetic stays float32 although training lowers the precision of products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def in_float32() -> AbstractContextManager[object]:
    """A state gathers over many steps what a product rounds away at each."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()
