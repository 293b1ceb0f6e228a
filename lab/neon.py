"""The kernel sweeps of every op on arm64, under emulation, against the same references, in each
instruction set and on a processor that has no better one:

    python -m lab.neon [--folder FOLDER] [--jobs 2] [PYTEST ARGUMENTS]

The first run makes the arm64 root (apt, pip, about 300 MB), in this user's cache folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgewright.artifacts.errors import EdgewrightError
from edgewright.artifacts.user_dirs import cache_dir
from edgewright.custom_ops.compiler import build, compiled_for
from lab import LabError
from lab.parts import ensure
from lab.parts.arm64 import PART, PROCESSORS

ROOT = Path(__file__).parents[1]
TARGET = "linux-aarch64"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the lab's parts are, or are to be made")
    parser.add_argument("--jobs", default="2", help="test processes, each with its emulator")
    options, arguments = parser.parse_known_args()
    try:
        return sweep(options.folder or cache_dir() / "lab", options.jobs, arguments)
    except EdgewrightError as error:
        print(f"lab.neon: {error}", file=sys.stderr)
        return 1


def sweep(folder: Path, jobs: str, arguments: list[str]) -> int:
    began = time.monotonic()
    made = ensure(PART, folder)
    print(f"arm64 root: {time.monotonic() - began:.0f} s", flush=True)
    build(TARGET)
    print(f"{TARGET} library: {time.monotonic() - began:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as notes:
        environment = os.environ | {
            "EDGEWRIGHT_ARM64_ROOT": str(made),
            "EDGEWRIGHT_ARM64_NOTES": notes,
        }
        command = [sys.executable, "-m", "pytest", "tests/custom_ops", "-n", jobs, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        for isa in PROCESSORS:
            swept = {path.name for path in Path(notes).glob(f"{isa}/*")}
            print(f"swept in {isa}: {', '.join(sorted(swept)) or 'nothing'}")
            missing = sorted({spec.name for spec in compiled_for(isa)} - swept)
            if done.returncode == 0 and missing and not arguments:
                raise LabError(f"no test swept the {isa} kernels of {', '.join(missing)}")
    print(f"emulated arm64: {time.monotonic() - began:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
