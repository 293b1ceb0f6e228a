"""Streaming large tensors, in a process of its own, costs pieces of memory and not tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, COLUMNS = 4096, 20480
LIMIT_MIB = 128  # some pieces of 16 MiB and what malloc keeps of them; the tensors are 160 to 640

Table = dict[str, tuple[str, list[int], int]]

PLAIN: Table = {
    "wide": ("BF16", [ROWS, COLUMNS], 2 * ROWS * COLUMNS),
    "experts": ("F32", [2, ROWS, COLUMNS // 2], 4 * ROWS * COLUMNS),
    "tiny": ("F32", [4], 16),
}
FP8: Table = {
    "wide": ("F8_E4M3", [ROWS, COLUMNS], ROWS * COLUMNS),
    "wide_scale_inv": ("F32", [ROWS // 128, COLUMNS // 128], 4 * ROWS * COLUMNS // 128**2),
    "tiny": ("F32", [4], 16),
}
MXFP4: Table = {
    "wide_blocks": ("U8", [2, ROWS, COLUMNS // 32, 16], ROWS * COLUMNS),
    "wide_scales": ("U8", [2, ROWS, COLUMNS // 32], ROWS * COLUMNS // 16),
    "tiny": ("F32", [4], 16),
}
CASES: dict[str, tuple[Table, str]] = {
    "plain": (PLAIN, 't["wide"]'),
    "strided": (PLAIN, 'strided_rows(t["experts"], 1, 2, dim=1)'),
    "transposed": (PLAIN, 'transpose_last_two(t["experts"])'),
    "stacked": (PLAIN, 'stack([widen(t["wide"]), plus_one(t["wide"])])'),
    "fp8": (FP8, 't["wide"]'),
    "mxfp4": (MXFP4, 't["wide"]'),
}

# The first stream pays for imports and for what torch sets up once.
STREAM = """
import sys
from edgewright.model.checkpoint import open_checkpoint
from edgewright.model.lazy import plus_one, stack, strided_rows, transpose_last_two, widen
from edgewright.model.nonfinite import count_nonfinite

def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10

def stream(lazy):
    return sum(len(p) for p in lazy.pieces() if not count_nonfinite(p, lazy.dtype)) == lazy.nbytes

t = open_checkpoint(sys.argv[1]).tensors
assert stream(t["tiny"])
before = peak_mib()
assert stream(eval(sys.argv[2]))
print(peak_mib() - before)
"""


def write_sparse(path: Path, table: Table, method: str) -> None:
    """Zeros that take no room on the disk."""
    (path / "config.json").write_text(
        "{}" if method == "plain" else json.dumps({"quantization_config": {"quant_method": method}})
    )
    header: dict[str, dict[str, object]] = {}
    position = 0
    for name, (dtype, shape, size) in table.items():
        offsets = [position, position + size]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += size
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
@pytest.mark.parametrize("case", CASES)
def test_peak_memory_of_streaming(tmp_path: Path, case: str) -> None:
    table, expression = CASES[case]
    write_sparse(tmp_path, table, case if case in ("fp8", "mxfp4") else "plain")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path), expression],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= LIMIT_MIB
