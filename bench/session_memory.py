"""What a running session keeps for itself: private memory beside states + activations + 100 MB.

    python bench/session_memory.py [--size 1B] [--bits 3.1] [--package PACKAGE]

Weights are mapped from the package: they are the system's to keep or drop, and count nothing here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from random_checkpoint import SHAPES, write_checkpoint

ALLOWANCE_BYTES = 100_000_000
PACKED_ALLOWANCE_BYTES = 150_000_000  # beside the weights and states, at the peak
PROMPT_TOKENS = 2048
CHILD = """
import json, sys
import numpy as np
from edgewright.runtime import Session
from edgewright.runtime.process_memory import ProcessMemory
session = Session.open(sys.argv[1])
count = min(int(sys.argv[2]), session.context_limit - 32)
ids = np.random.default_rng(0).integers(0, session.vocab_size, count)
session.prefill(ids)
prefilled = ProcessMemory.read().private_bytes
for _ in range(32):
    session.decode(1)
layout = session.package.manifest.variant(session.variant_name).states
state = layout.bytes_fixed + layout.bytes_per_token * (count + 32)
print(json.dumps({"tokens": count + 32, "state": state, "prefilled": prefilled,
    "decoded": ProcessMemory.read().private_bytes, "peak": ProcessMemory.read().peak_bytes,
    "kernels": session.kernels}))
"""
EXPORT = """
import sys
from edgewright.export import export_checkpoint
options = {"bits": float(sys.argv[3]), "method": "rtn"} if len(sys.argv) > 3 else {}
export_checkpoint(sys.argv[1], sys.argv[2], **options)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="150M")
    parser.add_argument("--package", type=Path, help="measure this one instead of a random one")
    parser.add_argument("--bits", help="quantise the random one, without text")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's own")
    arguments = parser.parse_args()
    if arguments.package is not None:
        report(arguments.package)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        checkpoint, package = Path(scratch, "checkpoint"), Path(scratch, "package")
        write_checkpoint(SHAPES[arguments.size], checkpoint)
        bits = [] if arguments.bits is None else [arguments.bits]
        run(EXPORT, str(checkpoint), str(package), *bits)
        report(package)


def report(package: Path) -> None:
    manifest = json.loads((package / "manifest.json").read_text())
    measured = json.loads(run(CHILD, str(package), str(PROMPT_TOKENS)))
    weights = sum(manifest["files"][path]["size"] for path in manifest["variants"][0]["weights"])
    over = measured["decoded"] - measured["state"]
    rows = (
        ("weights, mapped", weights),
        (f"states, {measured['tokens']} tokens", measured["state"]),
        ("private, after prefill", measured["prefilled"]),
        ("private, after decoding", measured["decoded"]),
        ("  beyond the states", over),
        ("peak resident, weights too", measured["peak"]),
    )
    print(f"{package.name}: {manifest['model']['parameters'] / 1e6:,.0f}M parameters,"
          f" {measured['kernels']} kernels")  # fmt: skip
    for label, size in rows:
        print(f"  {label:<28} {size / 1e6:>9,.1f} MB")
    if manifest["model"]["bits_per_weight"] < 16:
        beside = measured["peak"] - weights - measured["state"]
        print(f"asked of packed weights: at the peak at most weights + states +"
              f" {PACKED_ALLOWANCE_BYTES / 1e6:.0f} MB; it is {beside / 1e6:,.1f} MB")  # fmt: skip
    asked = "asked: private memory at most states + activations + 100 MB;"
    if over <= ALLOWANCE_BYTES:
        print(f"{asked} it would be, with no activations at all")
    else:
        print(f"{asked} it is, if activations are {(over - ALLOWANCE_BYTES) / 1e6:,.1f} MB or more")


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(ended.stderr)
    return ended.stdout


if __name__ == "__main__":
    main()
