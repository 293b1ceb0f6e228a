"""LatentAttention's kernel against the machine's float32 peak, against ONNX Runtime's own Attention
on the absorbed form, and against itself with a cache of more capacity.

    python bench/latent_attention.py [--threads 1 2] [--json]

Heads, rank and widths are DeepSeek-V2-Lite's. ONNX Runtime is given queries that have been through
the weight already and attends to keys and values that lie apart, so its times are of less work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
from machine import Machine
from onnx import TensorProto, helper

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.compiler import build, buildable_host

HEADS, RANK, ROPE, NOPE, VALUE = 16, 512, 64, 128, 128
SCALE = (NOPE + ROPE) ** -0.5
DECODE_ROUNDS, PREFILL_ROUNDS = 40, 10
# Decoding goes from cache to cache and from weight to weight, as it does from layer to layer, so
# that every read is from memory and not from the processor's last cache.
COLD_BYTES = 192 << 20
DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
}
Step = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    seq: int
    past: int
    dtype: str  # of the cache; the weight is of float16
    spare: int = 0  # tokens that the cache has room for beyond these

    @property
    def held(self) -> int:
        return self.past + self.seq

    @property
    def bytes_read(self) -> int:
        size = np.dtype(self.dtype).itemsize
        return size * self.held * (RANK + ROPE) + 2 * HEADS * (NOPE + VALUE) * RANK

    @property
    def flops(self) -> float:
        """Multiplications and additions of the cheaper form, of visible pairs only."""
        pairs = self.seq * self.past + self.seq * (self.seq + 1) / 2
        up = RANK * (NOPE + VALUE)
        absorbed = pairs * (2 * RANK + ROPE) + self.seq * up
        expanded = pairs * (NOPE + ROPE + VALUE) + self.held * up
        return 2.0 * HEADS * min(absorbed, expanded)


@dataclass(frozen=True)
class Row:
    """Times are medians; `fraction` is of the best pass by the machine's best."""

    threads: int
    seq: int
    past: int
    dtype: str
    microseconds: float
    gigaflops: float
    fraction: float
    ort_microseconds: float | None  # None where it has no such form


@dataclass(frozen=True)
class CapacityRow:
    """Medians of a decode step of the same length in a small cache and in a large one."""

    threads: int
    past: int
    tight_microseconds: float
    roomy_microseconds: float


def _session(
    node: onnx.NodeProto, types: dict[str, int], threads: int, library: str | None
) -> ort.InferenceSession:
    def infos(names: list[str]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, types.get(name, 1), None) for name in names]

    graph = helper.make_graph([node], "attention", infos(node.input), infos(node.output))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _ours(dtype: str, threads: int, library: str) -> ort.InferenceSession:
    spec = OPS["LatentAttention"]
    node = helper.make_node(
        spec.name,
        [tensor.name for tensor in spec.inputs],
        [tensor.name for tensor in spec.outputs],
        domain=DOMAIN,
        num_heads=HEADS,
        scale=SCALE,
        window=0,
    )
    types = {name: int(TensorProto.INT64) for name in ("table", "start", "length")}
    types |= {name: DTYPES[dtype] for name in ("cache", "cache_out")} | {"up": TensorProto.FLOAT16}
    return _session(node, types, threads, library)


def _theirs(threads: int) -> ort.InferenceSession:
    attributes = {"scale": SCALE, "q_num_heads": HEADS, "kv_num_heads": 1, "is_causal": 0}
    node = helper.make_node("Attention", ["query", "key", "value"], ["output"], **attributes)
    return _session(node, {}, threads, None)


def _bound(session: ort.InferenceSession, arrays: dict[str, np.ndarray]) -> Step:
    binding = session.io_binding()
    for name, array in arrays.items():
        value = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if name == "cache":
            binding.bind_ortvalue_output("cache_out", value)
    binding.bind_output("output", "cpu")
    return partial(session.run_with_iobinding, binding)


def _our_steps(shape: Shape, session: ort.InferenceSession) -> list[Step]:
    rng = np.random.default_rng(0)
    size = (1, shape.held + shape.spare, RANK + ROPE)
    if shape.dtype == "int8":
        cache = rng.integers(-100, 100, size, np.int8)
    else:
        cache = rng.standard_normal(size, np.float32).astype(shape.dtype)
    up = rng.standard_normal((HEADS * (NOPE + VALUE), RANK), np.float32) * RANK**-0.5
    arrays = {
        "query": rng.standard_normal((1, shape.seq, HEADS * (NOPE + ROPE)), np.float32),
        "latent": rng.standard_normal((1, shape.seq, RANK), np.float32),
        "key_rope": rng.standard_normal((1, shape.seq, ROPE), np.float32),
        "table": np.zeros((1, 1), np.int64),
        "start": np.array([shape.past]),
        "length": np.array([shape.seq]),
        "up": up.astype(np.float16),
        "cache": cache,
    }
    return [_bound(session, arrays) for _ in range(_copies(shape))]


def _their_steps(shape: Shape, session: ort.InferenceSession) -> list[Step]:
    rng = np.random.default_rng(0)
    sizes = {
        "query": (1, shape.seq, HEADS * (RANK + ROPE)),
        "key": (1, shape.held, RANK + ROPE),
        "value": (1, shape.held, RANK),
    }
    arrays = {name: rng.standard_normal(size, np.float32) for name, size in sizes.items()}
    return [_bound(session, arrays) for _ in range(_copies(shape))]


def _copies(shape: Shape) -> int:
    return -(-COLD_BYTES // shape.bytes_read) if shape.seq == 1 and not shape.spare else 1


def _in_turns(
    sides: list[list[Step]], rounds: int, machine: Machine
) -> tuple[list[list[float]], list[float]]:
    """Seconds of every side, and the machine's operations per second in between."""
    for step in itertools.chain(*sides):  # memory is touched, scratch is made
        step()
    taken: list[list[float]] = [[] for _ in sides]
    limits = []
    for number in range(rounds):
        for side, steps in zip(taken, sides, strict=True):
            begin = time.perf_counter()
            steps[number % len(steps)]()
            side.append(time.perf_counter() - begin)
        if number % 2 == 0:
            limits.append(machine.operations_per_second())
    return taken, limits


def _measure(shape: Shape, machine: Machine, library: str) -> Row:
    sides = [_our_steps(shape, _ours(shape.dtype, machine.threads, library))]
    if shape.seq == 1 and shape.dtype == "float32":
        sides.append(_their_steps(shape, _theirs(machine.threads)))
    rounds = DECODE_ROUNDS if shape.seq == 1 else PREFILL_ROUNDS
    taken, limits = _in_turns(sides, rounds, machine)
    seconds = [statistics.median(side) for side in taken]
    return Row(
        machine.threads,
        shape.seq,
        shape.past,
        shape.dtype,
        seconds[0] * 1e6,
        shape.flops / seconds[0] / 1e9,
        shape.flops / min(taken[0]) / max(limits),
        seconds[1] * 1e6 if len(seconds) > 1 else None,
    )


def _capacity(past: int, machine: Machine, library: str) -> CapacityRow:
    session = _ours("float16", machine.threads, library)
    # The larger cache is made for both sides, so that one of them is not the nearer in memory.
    shapes = Shape(1, past, "float16", 64), Shape(1, past, "float16", 31 * past)
    taken, _ = _in_turns([_our_steps(s, session) for s in shapes], 2 * DECODE_ROUNDS, machine)
    tight, roomy = (statistics.median(side) * 1e6 for side in taken)
    return CapacityRow(machine.threads, past, tight, roomy)


SHAPES = [
    *(Shape(1, past, dtype) for dtype in DTYPES for past in (127, 2047, 8191)),
    *(Shape(seq, past, "float16") for seq, past in ((64, 2048), (512, 0), (512, 2048))),
]


def _print(rows: list[Row], capacities: list[CapacityRow]) -> None:
    print("medians of calls taken in turns; fractions are between best passes")
    print("threads   seq  past    cache |    ours us   GFLOP/s  of peak |     ORT us  ratio")
    for row in rows:
        theirs = "         -      -"
        if row.ort_microseconds is not None:
            ratio = row.ort_microseconds / row.microseconds
            theirs = f"{row.ort_microseconds:10.0f} {ratio:6.2f}"
        print(
            f"{row.threads:7} {row.seq:5} {row.past:5} {row.dtype:>8} | {row.microseconds:10.0f}"
            f" {row.gigaflops:9.0f} {row.fraction:8.2f} | {theirs}"
        )
    for capacity in capacities:
        ratio = capacity.roomy_microseconds / capacity.tight_microseconds
        print(
            f"{capacity.threads} threads, {capacity.past} tokens held: a cache of 32 times their"
            f" number takes {ratio:.2f} times as long as one that is full"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    library = str(build(buildable_host()).path)
    machines = [Machine(threads) for threads in options.threads]
    rows = [_measure(shape, machine, library) for machine in machines for shape in SHAPES]
    capacities = [_capacity(2047, machine, library) for machine in machines]
    if options.json:
        found = {"rows": rows, "capacities": capacities}
        print(json.dumps({k: [asdict(row) for row in v] for k, v in found.items()}, indent=1))
        return
    _print(rows, capacities)


if __name__ == "__main__":
    main()
