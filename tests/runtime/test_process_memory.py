"""What the process says of its memory is so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgewright.runtime.process_memory import ProcessMemory, bytes_read_through_maps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MEGABYTE = 1 << 20


def test_only_what_is_read_counts(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/mapped", "outside"):
        (tmp_path / name).write_bytes(b"x" * (8 * MEGABYTE))
    inside = np.memmap(tmp_path / "in/mapped", dtype=np.uint8, mode="r")
    outside = np.memmap(tmp_path / "outside", dtype=np.uint8, mode="r")

    def read() -> None:
        inside[: 3 * MEGABYTE].sum()
        outside.sum()

    counted = bytes_read_through_maps(tmp_path / "in", read)
    assert counted is not None
    assert 3 * MEGABYTE <= counted <= 4 * MEGABYTE  # a page may have 2 MB


def test_private_memory_is_what_was_written() -> None:
    before = ProcessMemory.read().private_bytes
    held = np.ones(64 * MEGABYTE, dtype=np.uint8)
    after = ProcessMemory.read().private_bytes
    assert before is not None
    assert after is not None
    assert held.nbytes <= after - before <= held.nbytes + 8 * MEGABYTE
