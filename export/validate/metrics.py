"""How far two sets of logits [tokens, vocab] lie apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """`error` is the largest difference in units of max(1, the reference's standard deviation)."""

    error: float
    max_abs: float
    mean_abs: float
    kl: float  # mean over positions, in nats, from the reference to the package
    top1: float  # share of positions whose likeliest token is the same

    @staticmethod
    def between(found: Logits, reference: Logits) -> Difference:
        if found.shape != reference.shape:
            raise ValueError(f"logits {found.shape} cannot be compared with {reference.shape}")
        apart = np.abs(found.astype(np.float64) - reference)
        p, q = _log_softmax(reference), _log_softmax(found)
        return Difference(
            error=scaled_error(found, reference),
            max_abs=float(apart.max(initial=0)),
            mean_abs=float(apart.mean()) if apart.size else 0.0,
            kl=float((np.exp(p) * (p - q)).sum(-1).mean()) if apart.size else 0.0,
            top1=float((found.argmax(-1) == reference.argmax(-1)).mean()) if apart.size else 1.0,
        )


def scaled_error(found: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """The one measure every comparison uses; what is not a number on one side only is infinite."""
    if found.size == 0:
        return 0.0
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    reference = np.where(finite, reference, 0).astype(np.float64)
    found = np.where(finite, found, 0).astype(np.float64)
    return float(np.abs(found - reference).max() / max(1.0, float(reference.std())))


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
