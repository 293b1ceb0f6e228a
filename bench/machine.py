"""What this machine can do at most, for benchmarks to stand beside: bytes read from memory, float32
operations and operations on bytes, each per second, with any number of threads."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgewright.custom_ops as custom_ops
from edgewright.artifacts.user_dirs import cache_dir
from edgewright.custom_ops.compiler import (
    TARGETS_BY_NAME,
    Unit,
    build,
    buildable_host,
    compile_units,
)

_READ_BYTES = 256 << 20
_ROUNDS = 1_000_000


def _load() -> ctypes.CDLL:
    best = ctypes.CDLL(str(build(buildable_host()).path)).edgewright_isa
    best.restype = ctypes.c_char_p
    isa = best().decode()
    memory = Path(custom_ops.__file__).parent / "native" / "memory.cc"
    units = [Unit(Path(__file__).parent / "machine.cc", isa), Unit(memory, isa)]
    target = TARGETS_BY_NAME[buildable_host()]
    with TemporaryDirectory(ignore_cleanup_errors=True) as work:
        return ctypes.CDLL(str(compile_units(target, units, Path(work), cache_dir() / "zig")))


@dataclass
class Machine:
    """Each measurement is one pass; take several, between those they are compared with."""

    threads: int
    library: ctypes.CDLL = field(default_factory=_load)
    data: NDArray[Any] = field(default_factory=lambda: np.ones(_READ_BYTES // 4, np.float32))

    def __post_init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.threads)

    def read_bytes_per_second(self) -> float:
        share = len(self.data) // self.threads
        parts = [self.data[i * share : (i + 1) * share] for i in range(self.threads)]

        def read(part: NDArray[Any]) -> None:
            pointer = part.ctypes.data_as(ctypes.c_void_p)
            self.library.bench_read(pointer, ctypes.c_size_t(len(part)))

        return self.data.nbytes / self._seconds(lambda i: read(parts[i]))

    def operations_per_second(self) -> float:
        per_round: int = self.library.bench_operations_per_round()
        return self._operations(self.library.bench_multiply_add, per_round)

    def byte_operations_per_second(self) -> float:
        """Products of bytes and their sums in 32 bits."""
        per_round: int = self.library.bench_byte_operations_per_round()
        return self._operations(self.library.bench_multiply_bytes, per_round)

    def _operations(self, chains: Callable[[ctypes.c_size_t], object], per_round: int) -> float:
        rounds = ctypes.c_size_t(_ROUNDS)
        seconds = self._seconds(lambda _: chains(rounds))
        return self.threads * _ROUNDS * per_round / seconds

    def _seconds(self, task: Callable[[int], object]) -> float:
        begin = time.perf_counter()
        list(self.pool.map(task, range(self.threads)))
        return time.perf_counter() - begin
