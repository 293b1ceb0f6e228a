"""Recipe: every choice of a training run, and the learning-rate schedule that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from edgewright.artifacts.errors import TrainingError

Architecture = Literal["latent_hybrid", "llama"]
Precision = Literal["float32", "bfloat16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    steps: int | None = None
    hours: float | None = None
    seed: int = 0
    architecture: Architecture = "latent_hybrid"
    precision: Precision = "float32"
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2  # llama
    rank: int = 64  # latent_hybrid: of the latents
    state: int = 64  # latent_hybrid: what each channel of Mamba-2 remembers
    intermediate: int = 512
    context: int = 1024
    batch_rows: int = 8
    matrix_rate: float = 0.02
    vector_rate: float = 0.004
    weight_decay: float = 0.05
    warmup: float = 0.01  # share of the run in which the rates rise
    decay: float = 0.5  # share of the run, at its end, in which they fall to zero

    def __post_init__(self) -> None:
        if self.steps is None and self.hours is None:
            raise TrainingError("how long to train is not said: give --steps, --hours or both")
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise TrainingError(
                f"--hidden {self.hidden} over --heads {self.heads} does not give heads of an"
                " even size: choose a multiple of twice the heads"
            )
        if self.heads % self.kv_heads:
            raise TrainingError(
                f"--heads {self.heads} is not a multiple of --kv-heads {self.kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def dtype(self) -> torch.dtype:
        return _DTYPES[self.precision]

    def progress(self, step: int, seconds: float) -> float:
        """0 to 1: by steps, by time, or by whichever is further."""
        by_step = step / self.steps if self.steps else 0.0
        by_time = seconds / (self.hours * 3600) if self.hours else 0.0
        return min(1.0, max(by_step, by_time))

    def rate(self, progress: float, step: int) -> float:
        """A trapezium; the first step is never at zero, nor the last at more than it should be."""
        rise = (progress + 1e-3) / self.warmup if self.warmup else 1.0
        # A run by time alone does not know its steps; a few small ones do no harm.
        rise = min(rise, (step + 1) / 20) if self.steps is None else rise
        return min(1.0, rise, (1 - progress) / self.decay if self.decay else 1.0)
