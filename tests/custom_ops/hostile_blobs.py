"""Damaged packed weights go through each op's kernel; the process lives, or a test sees it die.

    python -m tests.custom_ops.hostile_blobs LIBRARY ISA

Each blob, and x, ends where memory that may not be read begins, so that not a byte beyond it is.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.packed_weights import pack
from tests.custom_ops.packed_cases import random_matrix
from tests.custom_ops.single_op import SingleOp

Array = NDArray[Any]
Inputs = dict[str, Array]
TRIALS = 150


class Fenced:
    """Memory whose end cannot be read across."""

    def __init__(self, size: int) -> None:
        page = mmap.PAGESIZE
        self._bytes = -(-size // page) * page
        self._memory = mmap.mmap(-1, self._bytes + page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + self._bytes), page, 0):
            raise OSError("mprotect")

    def array(self, data: bytes) -> Array:
        at = self._bytes - len(data)
        self._memory[at : self._bytes] = data
        return np.frombuffer(self._memory, np.uint8, len(data), at)


def _blob(
    rng: np.random.Generator, rows: int, columns: int, stack: int = 1, ordered: bool = True
) -> Array:
    bits = (int(rng.choice([2, 3, 4, 5, 6])), int(rng.choice([2, 3, 4, 5, 6, 8])))
    first = rows // 3
    options = {"zeros": bool(rng.integers(2)), "kind": int(rng.integers(3)), "outliers": 0.05}
    options["column_order"] = ordered and bool(rng.integers(2))
    segments = [(first, bits[0]), (rows - first, bits[1])]
    return pack([random_matrix(rng, segments, columns, 32, **options) for _ in range(stack)])


def _gather(rng: np.random.Generator) -> tuple[Inputs, tuple[str, ...]]:
    return {"ids": np.arange(0, 41), "weight": _blob(rng, 41, 97)}, ("weight",)


def _product(rng: np.random.Generator) -> tuple[Inputs, tuple[str, ...]]:
    rows = int(rng.choice([1, 5, 40]))
    x = rng.standard_normal((rows, 97), np.float32)
    return {"x": x, "weight": _blob(rng, 42, 97)}, ("weight",)


def _attention(rng: np.random.Generator) -> tuple[Inputs, tuple[str, ...]]:
    seq = int(rng.choice([1, 40]))  # absorbed, or expanded
    inputs = {
        "query": rng.standard_normal((1, seq, 2 * 16), np.float32),
        "latent": rng.standard_normal((1, seq, 40), np.float32),
        "key_rope": rng.standard_normal((1, seq, 8), np.float32),
        "up": _blob(rng, 2 * 17, 40, ordered=False),
        "cache": np.zeros((1, 64, 48), np.float32),
        "table": np.zeros((1, 1), np.int64),
        "start": np.full(1, 3),
        "length": np.full(1, seq),
    }
    return inputs, ("up",)


def _experts(rng: np.random.Generator) -> tuple[Inputs, tuple[str, ...]]:
    tokens = int(rng.choice([1, 30]))
    inputs = {
        "x": rng.standard_normal((tokens, 40), np.float32),
        "expert_index": rng.integers(0, 3, (tokens, 2)),
        "expert_weight": rng.random((tokens, 2), np.float32),
        "gate": _blob(rng, 33, 40, 3),
        "up": _blob(rng, 33, 40, 3),
        "down": _blob(rng, 40, 33, 3),
    }
    biases = ("gate_bias", "up_bias", "down_bias")
    inputs |= {name: np.zeros((1, 1), np.float32) for name in biases}
    return inputs, ("gate", "up", "down")


Draw = Callable[[np.random.Generator], tuple[Inputs, tuple[str, ...]]]
DRAWS: Mapping[str, tuple[Draw, Mapping[str, int | float | str]]] = {
    "BlockGather": (_gather, {}),
    "BlockMatMul": (_product, {}),
    "GatedMatMul": (_product, {"activation": "silu"}),
    "LatentAttention": (_attention, {"num_heads": 2, "scale": 0.3, "window": 0}),
    "RoutedExperts": (_experts, {"activation": "silu", "alpha": 1.0, "limit": 1.0}),
}


def damaged(rng: np.random.Generator, blob: Array) -> bytes:
    """Some bytes changed, at times in the header or what is said of columns, or the end cut off."""
    data = bytearray(blob.tobytes())
    columns = int.from_bytes(data[16:20], "little")
    if rng.random() < 0.1:
        return bytes(data[: rng.integers(0, len(data) + 1)])
    for _ in range(int(rng.integers(1, 9))):
        end = int(rng.choice([128, 512, len(data)], p=[0.15, 0.25, 0.6]))
        if rng.random() < 0.5:
            data[rng.integers(0, end)] = rng.integers(0, 256)
        else:
            at = int(rng.integers(0, end // 4)) * 4
            values = [0, 1, columns, 2**16, 2**31, 2**32 - 1, rng.integers(0, 2**32)]
            value = int(rng.choice(values))
            data[at : at + 4] = value.to_bytes(4, "little")
    return bytes(data)


def main(library: str, isa: str) -> None:
    loaded = Library("", Path(library), "")
    for op in DRAWS:
        print(op, flush=True)
        run(op, loaded, isa)


def run(op: str, library: Library, isa: str) -> None:
    draw, attributes = DRAWS[op]
    rng = np.random.default_rng(0)
    ran = 0
    for _ in range(8):
        inputs, weights = draw(rng)
        session = SingleOp(op, inputs, attributes, symbolic=weights).session(library, isa)
        session.run(None, inputs)
        if (x := inputs.get("x")) is not None:
            fenced = Fenced(x.nbytes).array(x.tobytes())
            inputs["x"] = fenced.view(x.dtype).reshape(x.shape)
        for _ in range(TRIALS // 8):
            name = str(rng.choice(weights))
            data = damaged(rng, inputs[name])
            given = {**inputs, name: Fenced(len(data) + 1).array(data)}
            try:
                session.run(None, given)
                ran += 1
            except (Fail, InvalidArgument):
                pass
    assert ran > TRIALS // 4, "most damage is to values, and those are read"


if __name__ == "__main__":
    main(*sys.argv[1:])
