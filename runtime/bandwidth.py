"""A number of threads goes in; how fast they read memory together comes out.

Each thread reads its own part of one array, far larger than any cache, with the two loops of numpy
that ask least of the processor per byte; the fastest pass counts. It runs in a process of its own,
so that the array does not appear in the memory of the process that asks, and so that the products'
own threads can be turned off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError

METHOD = "fastest of 8 passes over 512 MB by numpy's max and dot, one part a thread"
ARRAY_BYTES = 512 << 20
_PASSES = 8
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Part = NDArray[np.float32]


@dataclass(frozen=True)
class Bandwidth:
    bytes_per_second: float
    threads: int
    method: str = METHOD


def measure_bandwidth(threads: int) -> Bandwidth:
    command = [sys.executable, "-m", __name__, str(threads), str(ARRAY_BYTES)]
    done = subprocess.run(
        command, env=os.environ | _ONE_THREAD, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise SessionError(f"the memory bandwidth cannot be measured: {reason[0]}")
    return Bandwidth(float(json.loads(done.stdout)), threads)


def read_speed(threads: int, array_bytes: int) -> float:
    """Bytes a second, in this process."""
    array = np.ones(array_bytes // 4, dtype=np.float32)
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(
            _seconds(pool, loop, parts) for loop in (_maximum, _product) for _ in range(_PASSES)
        )
    return array.nbytes / seconds


def _seconds(pool: ThreadPoolExecutor, loop: Callable[[Part], object], parts: list[Part]) -> float:
    began = time.perf_counter()
    list(pool.map(loop, parts))
    return time.perf_counter() - began


def _maximum(part: Part) -> object:
    return part.max()


def _product(part: Part) -> object:
    half = part.size // 2
    return np.dot(part[:half], part[half : 2 * half])


if __name__ == "__main__":
    print(json.dumps(read_speed(int(sys.argv[1]), int(sys.argv[2]))))
