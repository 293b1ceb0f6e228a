"""What exporting takes: wall time and peak memory, beside what is asked of them.

python bench/export_memory.py            a 150M-parameter decoder of 12 layers
python bench/export_memory.py --size 4GB a checkpoint of 4 GB in bfloat16
python bench/export_memory.py --size 7B --bits 3.1 --folder /large/disk
                                         a 7B shape, quantised without text; 17 GB of disk
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
ASKED_PACKED = "under 6,000 MB, for 7B"
CHILD = """
import sys
from pathlib import Path
from edgewright.export import export_checkpoint
options = {"bits": float(sys.argv[3]), "method": sys.argv[4]} if len(sys.argv) > 3 else {}
package = export_checkpoint(sys.argv[1], sys.argv[2], **options)
print(f"{package.manifest.model.bits_per_weight:.4g}")
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="150M")
    parser.add_argument("--bits", help="quantise, without text")
    parser.add_argument("--method", default="auto", help="auto or rtn")
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
        if arguments.bits is not None:
            command += [arguments.bits, arguments.method]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if ended.returncode != 0:
            sys.exit(ended.stderr)
        written = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    bits, peak = ended.stdout.split()[-2:]
    print(f"package:    {written / 1e6:,.0f} MB, {bits} bits per weight")
    print(f"wall time:  {seconds:.1f} s, Python's start included")
    print(f"peak:       {int(peak) * 1024 / 1e6:,.0f} MB (VmHWM)")
    asked = ASKED.get(arguments.size, "nothing for this size")
    print(f"asked:      {asked if arguments.bits is None else ASKED_PACKED}")


if __name__ == "__main__":
    main()
