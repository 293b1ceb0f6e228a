"""What exporting takes: wall time and peak memory, beside what is asked of them.

python bench/export_memory.py            a 150M-parameter decoder of 12 layers
python bench/export_memory.py --size 4GB a checkpoint of 4 GB in bfloat16
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from random_checkpoint import SHAPES, write_checkpoint

ASKED = {"150M": "under 20 s", "4GB": "under 1,000 MB"}
CHILD = """
import sys
from pathlib import Path
from edgewright.export import export_checkpoint
export_checkpoint(sys.argv[1], sys.argv[2])
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="150M")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's own")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.size]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        checkpoint, package = Path(scratch, "checkpoint"), Path(scratch, "package")
        size = write_checkpoint(shape, checkpoint)
        print(
            f"checkpoint: {shape.parameters / 1e6:,.0f}M parameters, {shape.layers} layers,"
            f" {size / 1e6:,.0f} MB of bfloat16"
        )
        began = time.perf_counter()
        command = [sys.executable, "-c", CHILD, str(checkpoint), str(package)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if ended.returncode != 0:
            sys.exit(ended.stderr)
        written = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    print(f"package:    {written / 1e6:,.0f} MB")
    print(f"wall time:  {seconds:.1f} s, Python's start included")
    print(f"peak:       {int(ended.stdout.split()[-1]) * 1024 / 1e6:,.0f} MB (VmHWM)")
    print(f"asked:      {ASKED.get(arguments.size, 'nothing for this size')}")


if __name__ == "__main__":
    main()
