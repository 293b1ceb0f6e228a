"""Prefill keeps no score matrix: its peak grows by little where one takes 64 MiB a head."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewright.custom_ops.compiler import Library
from edgewright.runtime.process_memory import ProcessMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TOKENS, HEADS, DIM = 4096, 2, 16


ATTRIBUTES = {"num_heads": HEADS, "scale": 0.25, "window": 0, "softcap": 0.0}


def prompt(cache: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pool = np.zeros((1, HEADS, TOKENS, DIM), cache)
    inputs = {
        name: rng.standard_normal((1, TOKENS, HEADS * DIM), np.float32)
        for name in ("query", "key", "value")
    }
    return inputs | {
        "key_cache": pool,
        "value_cache": pool.copy(),
        "table": np.zeros((1, 1), np.int64),
        "start": np.array([0]),
        "length": np.array([TOKENS]),
        "sinks": np.array([-np.inf], np.float32),
    }


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_prefill_keeps_no_scores(
    cache: str, library: Library, single_op: Callable[..., Any]
) -> None:
    inputs = prompt(cache)
    session = single_op("CachedAttention", inputs, ATTRIBUTES).session(library, threads=2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    reached = ProcessMemory.read().peak_bytes
    session.run(None, inputs)
    peak = ProcessMemory.read().peak_bytes
    assert reached is not None and peak is not None
    # Outputs take 1.5 MiB, and each of two threads a block of scratch.
    assert peak - reached < 6 << 20
