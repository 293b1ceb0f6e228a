"""No damage to a packed weight makes a kernel read beyond it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgewright.custom_ops.compiler import Library
from tests.custom_ops import emulated
from tests.custom_ops.hostile_blobs import DRAWS

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform == "win32", reason="memory is fenced with mprotect")
@pytest.mark.skipif(bool(emulated.ROOT), reason="the process would not be an emulated one")
def test_damaged_blobs(isa: str, library: Library) -> None:
    """Of every op that takes packed weights; the last that is named is the one that failed."""
    command = [sys.executable, "-m", "tests.custom_ops.hostile_blobs", str(library.path), isa]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.split() == list(DRAWS)
