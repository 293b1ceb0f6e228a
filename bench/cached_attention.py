"""CachedAttention's kernel against ONNX Runtime's GroupQueryAttention, and against the machine: the
fraction of its read bandwidth that decoding reaches and of its float32 peak that prefill reaches.

    python bench/cached_attention.py [--threads 2] [--only int8] [--json]

A cache of int8 is compared with ONNX Runtime's own, which has one scale for all keys and one for
all values where ours has one a row. The last lines say which shapes are faster in which. On one
thread of a Zen 5: ours by 1.5 to 2.2 in prefill, by 1.3 to 2.9 in decoding where query heads share
keys (they are read once), by 3.8 to 7.6 with int8; ONNX Runtime's by up to 1.07 in decoding with as
many key/value heads as query heads, where both wait for memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
from machine import Machine
from onnx import TensorProto, helper

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.compiler import build, buildable_host

DECODE_ROUNDS, PREFILL_ROUNDS = 40, 12
# Decoding goes from cache to cache, as it does from layer to layer, so that every read is from
# memory and not from the processor's last cache.
COLD_BYTES = 256 << 20


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    seq: int
    past: int
    cache: str = "float32"

    @property
    def held_bytes(self) -> int:
        element = np.dtype(self.cache).itemsize
        return 2 * element * self.kv_heads * self.dim * (self.past + self.seq)

    @property
    def flops(self) -> float:
        """Multiplications and additions of the two products, of visible pairs only."""
        pairs = self.seq * self.past + self.seq * (self.seq + 1) / 2
        return 4.0 * self.heads * self.dim * pairs


@dataclass(frozen=True)
class Row:
    heads: int
    kv_heads: int
    dim: int
    seq: int
    past: int
    cache: str
    microseconds: float
    ort_microseconds: float
    fraction: float  # of bandwidth when seq is 1, of the peak else


def _inputs(shape: Shape) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    width, kv_width = shape.heads * shape.dim, shape.kv_heads * shape.dim
    return {
        "query": rng.standard_normal((1, shape.seq, width), np.float32),
        "key": rng.standard_normal((1, shape.seq, kv_width), np.float32),
        "value": rng.standard_normal((1, shape.seq, kv_width), np.float32),
        "table": np.zeros((1, 1), np.int64),
        "start": np.array([shape.past]),
        "length": np.array([shape.seq]),
        "sinks": np.array([-np.inf], np.float32),
        "seqlens_k": np.array([shape.past + shape.seq - 1], np.int32),
        "total": np.array(shape.past + shape.seq, np.int32),
        "k_scale": np.array([0.03], np.float32),
        "v_scale": np.array([0.03], np.float32),
    }


def _session(
    node: onnx.NodeProto, types: Mapping[str, int], threads: int, library: str | None
) -> ort.InferenceSession:
    def infos(names: list[str]) -> list[onnx.ValueInfoProto]:
        given = filter(None, names)
        return [helper.make_tensor_value_info(name, types.get(name, 1), None) for name in given]

    graph = helper.make_graph([node], "attention", infos(node.input), infos(node.output))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(node.domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _ours(shape: Shape, threads: int, library: str) -> ort.InferenceSession:
    spec = OPS["CachedAttention"]
    node = helper.make_node(
        spec.name,
        [tensor.name for tensor in spec.inputs],
        [tensor.name for tensor in spec.outputs],
        domain=DOMAIN,
        num_heads=shape.heads,
        scale=shape.dim**-0.5,
        window=0,
        softcap=0.0,
    )
    types = {name: TensorProto.INT64 for name in ("table", "start", "length")}
    types |= _cache_types(shape)
    return _session(node, types, threads, library)


def _theirs(shape: Shape, threads: int) -> ort.InferenceSession:
    inputs = ["query", "key", "value", "key_cache", "value_cache", "seqlens_k", "total"]
    attributes: dict[str, int | str] = {}
    if shape.cache == "int8":
        inputs += [*("",) * 5, "k_scale", "v_scale"]  # what stands between is left out
        attributes = {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR"}
        attributes["kv_cache_bit_width"] = 8
    node = helper.make_node(
        "GroupQueryAttention",
        inputs,
        ["output", "key_cache_out", "value_cache_out"],
        domain="com.microsoft",
        num_heads=shape.heads,
        kv_num_heads=shape.kv_heads,
        scale=shape.dim**-0.5,
        **attributes,
    )
    types = {name: TensorProto.INT32 for name in ("seqlens_k", "total")}
    types |= _cache_types(shape)
    return _session(node, types, threads, None)


def _cache_types(shape: Shape) -> dict[str, int]:
    element = TensorProto.INT8 if shape.cache == "int8" else TensorProto.FLOAT
    names = ("key_cache", "value_cache")
    return {name: element for cache in names for name in (cache, f"{cache}_out")}


def _random_cache(rng: np.random.Generator, size: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "int8":
        return rng.integers(-127, 127, size, np.int8, endpoint=True)
    return rng.standard_normal(size, np.float32)


def _steps(shape: Shape, session: ort.InferenceSession) -> list[Callable[[], None]]:
    """One call for each of several caches, every cache bound as input and output."""
    arrays = _inputs(shape)
    caches = -(-COLD_BYTES // shape.held_bytes) if shape.seq == 1 else 1
    rng = np.random.default_rng(1)
    size = (1, shape.kv_heads, shape.past + shape.seq, shape.dim)
    steps: list[Callable[[], None]] = []
    for _ in range(caches):
        binding = session.io_binding()
        names = {node.name for node in session.get_inputs()}
        for name in names & arrays.keys():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(arrays[name]))
        for name in ("key_cache", "value_cache"):
            cache = _random_cache(rng, size, shape.cache)
            value = ort.OrtValue.ortvalue_from_numpy(cache)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"{name}_out", value)
        binding.bind_output("output", "cpu")
        steps.append(partial(session.run_with_iobinding, binding))
    return steps


def _compare(shape: Shape, machine: Machine, library: str) -> Row:
    """Ours, theirs and the machine, taken in turns. Times are medians; the fraction is between best
    passes, since other work on the machine interrupts its own longer passes more often."""
    rounds = DECODE_ROUNDS if shape.seq == 1 else PREFILL_ROUNDS
    sides = [
        _steps(shape, _ours(shape, machine.threads, library)),
        _steps(shape, _theirs(shape, machine.threads)),
    ]
    for step in itertools.chain(*sides):  # memory is touched, scratch is made
        step()
    limit = machine.read_bytes_per_second if shape.seq == 1 else machine.operations_per_second
    taken: list[list[float]] = [[], []]
    limits = []
    for number in range(rounds):
        for side, steps in enumerate(sides):
            begin = time.perf_counter()
            steps[number % len(steps)]()
            taken[side].append(time.perf_counter() - begin)
        if number % 4 == 0:
            limits.append(limit())
    ours, theirs = (statistics.median(side) for side in taken)
    work = shape.held_bytes if shape.seq == 1 else shape.flops
    fraction = work / min(taken[0]) / max(limits)
    times = {"microseconds": ours * 1e6, "ort_microseconds": theirs * 1e6}
    return Row(**asdict(shape), **times, fraction=fraction)


SHAPES = [
    *(Shape(32, 8, 64, 1, past) for past in (127, 2047, 8191)),
    Shape(16, 8, 128, 1, 8191),
    Shape(8, 8, 64, 1, 8191),
    Shape(8, 1, 128, 1, 8191),
    *(Shape(32, 8, 64, seq, 0) for seq in (512, 2048)),
    *(Shape(16, 8, 128, seq, 0) for seq in (512, 2048)),
    Shape(32, 8, 64, 512, 2048),
    *(Shape(32, 8, 64, 1, past, "int8") for past in (2047, 8191)),
    Shape(16, 8, 128, 1, 8191, "int8"),
    Shape(8, 8, 64, 1, 8191, "int8"),
    Shape(32, 8, 64, 512, 0, "int8"),
    Shape(32, 8, 64, 512, 2048, "int8"),
]
EVEN = 0.03  # faster by less than this is not faster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["float32", "int8"], help="one type of cache")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    library = str(build(buildable_host()).path)
    machine = Machine(options.threads)
    chosen = [shape for shape in SHAPES if options.only in (None, shape.cache)]
    rows = [_compare(shape, machine, library) for shape in chosen]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{options.threads} threads; medians of calls taken in turns")
    print("cache   heads  dim   seq  past |    ours us     ORT us  ratio | fraction of")
    for row in rows:
        bound = "bandwidth" if row.seq == 1 else "peak"
        print(
            f"{row.cache:7} {row.heads:2}/{row.kv_heads:<2} {row.dim:4} {row.seq:5} {row.past:5} |"
            f" {row.microseconds:10.0f} {row.ort_microseconds:10.0f} "
            f"{row.ort_microseconds / row.microseconds:6.2f} | {row.fraction:.2f} {bound}"
        )
    ratios = {row: row.ort_microseconds / row.microseconds for row in rows}
    ours = [row for row, ratio in ratios.items() if ratio > 1 + EVEN]
    theirs = [row for row, ratio in ratios.items() if ratio < 1 - EVEN]
    print(f"ours is faster: {_named(ours)}")
    print(f"ONNX Runtime's is faster: {_named(theirs)}")
    print(
        f"even within {EVEN:.0%}: {_named([r for r in rows if r not in ours and r not in theirs])}"
    )


def _named(rows: list[Row]) -> str:
    return ", ".join(f"{r.cache} {r.heads}/{r.kv_heads} {r.seq}@{r.past}" for r in rows) or "none"


if __name__ == "__main__":
    main()
