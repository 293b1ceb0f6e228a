"""SelectiveScan's kernel against its own body in standard ops, ONNX Runtime's LinearAttention and a
loop in torch; for decoding also the fraction of the machine's read bandwidth that moving the state
(read and written) and its decay rates (read) reaches.

    python bench/selective_scan.py [--threads 2] [--json]

LinearAttention computes the same with a head for each channel, heads of one value, and each head's
decays and keys written out; making those is part of its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import torch
from machine import Machine
from onnx import TensorProto, helper, parser

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.compiler import build, buildable_host
from edgewright.custom_ops.selective_scan.body import SelectiveScan
from edgewright.custom_ops.torch_ops import selective_scan

DECODE_ROUNDS, PREFILL_ROUNDS = 200, 12
SLOW_ROUNDS = 3  # of those sides that take hundreds of times as long
# Decoding goes from state to state, as it does from layer to layer, so that none is read from the
# processor's last cache.
COLD_BYTES = 128 << 20
Arrays = dict[str, np.ndarray]
Step = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    seq: int
    channels: int
    states: int

    @property
    def moved_bytes(self) -> int:
        return 3 * 4 * self.states * self.channels


@dataclass(frozen=True)
class Row:
    """Medians. `fraction` is of the best pass of the machine, by our best, in decoding."""

    seq: int
    channels: int
    states: int
    microseconds: float
    linear_attention: float
    body: float
    torch: float
    fraction: float | None


def _inputs(shape: Shape) -> Arrays:
    rng = np.random.default_rng(0)
    wide, narrow = (1, shape.seq, shape.channels), (1, shape.seq, shape.states)
    dt = rng.uniform(1e-3, 0.1, wide).astype(np.float32)
    rates = np.repeat(np.arange(1, shape.states + 1, dtype=np.float32)[:, None], shape.channels, 1)
    return {
        "x": dt * rng.standard_normal(wide, np.float32),
        "dt": dt,
        "a": -rates,
        "b": rng.standard_normal(narrow, np.float32),
        "c": rng.standard_normal(narrow, np.float32),
        "state": rng.standard_normal((1, shape.states, shape.channels), np.float32),
        "length": np.array([shape.seq]),
    }


def _session(model: onnx.ModelProto, threads: int, library: str | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _ours(threads: int, library: str | None) -> ort.InferenceSession:
    """With a library the kernel, without the body."""
    spec = OPS["SelectiveScan"]
    names = [tensor.name for tensor in spec.inputs]
    node = helper.make_node(spec.name, names, [t.name for t in spec.outputs], domain=DOMAIN)

    def infos(given: list[str]) -> list[onnx.ValueInfoProto]:
        kinds = {"length": TensorProto.INT64}
        return [helper.make_tensor_value_info(n, kinds.get(n, 1), None) for n in given]

    graph = helper.make_graph([node], "scan", infos(names), infos(list(node.output)))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    functions = [] if library else [SelectiveScan.to_function_proto()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    return _session(model, threads, library)


def _linear_attention(shape: Shape, threads: int) -> ort.InferenceSession:
    """Its state is [1, D, N, 1] and its rates are [D, N]."""
    seq, channels, states = shape.seq, shape.channels, shape.states
    model = parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        scan (float[1,{seq},{channels}] x, float[1,{seq},{channels}] dt,
              float[{channels},{states}] a, float[1,{seq},{states}] b, float[1,{seq},{states}] c,
              float[1,{channels},{states},1] state)
            => (float[1,{seq},{channels}] y, float[1,{channels},{states},1] state_out) {{
            each = Constant <value_ints = [1, {seq}, {channels}, 1]> ()
            all = Constant <value_ints = [1, {seq}, {channels * states}]> ()
            times = Constant <value_ints = [1, 1, {channels}]> ()
            dt_each = Reshape (dt, each)
            products = Mul (dt_each, a)
            decay = Reshape (products, all)
            key = Tile (b, times)
            y, state_out = com.microsoft.LinearAttention <
                q_num_heads = 1, kv_num_heads = {channels}, update_rule = "gated", scale = 1.0
            > (c, key, x, state, decay)
        }}"""
    )
    return _session(model, threads, None)


def _as_heads(arrays: Arrays) -> Arrays:
    taken = {name: arrays[name] for name in ("x", "dt", "b", "c")}
    state = np.ascontiguousarray(arrays["state"].swapaxes(1, 2)[..., None])
    return taken | {"a": np.ascontiguousarray(arrays["a"].T), "state": state}


def _steps(
    shape: Shape, session: ort.InferenceSession, arrays: Mapping[str, np.ndarray]
) -> list[Step]:
    """A call for each of several states, each bound as input and output."""
    copies = -(-COLD_BYTES // shape.moved_bytes) if shape.seq == 1 else 1
    steps: list[Step] = []
    for _ in range(copies):
        binding = session.io_binding()
        for name, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array.copy())
            binding.bind_ortvalue_input(name, value)
            if name == "state":
                binding.bind_ortvalue_output("state_out", value)
        binding.bind_output("y", "cpu")
        steps.append(partial(session.run_with_iobinding, binding))
    return steps


def _check(shape: Shape, threads: int, library: str) -> None:
    """They compute the same."""
    arrays = _inputs(shape)
    y, state = _ours(threads, library).run(None, arrays)
    their_y, their_state = _linear_attention(shape, threads).run(None, _as_heads(arrays))
    np.testing.assert_allclose(y, their_y, rtol=0, atol=1e-4)
    np.testing.assert_allclose(state, their_state[..., 0].swapaxes(1, 2), rtol=0, atol=1e-4)


def _compare(shape: Shape, machine: Machine, library: str) -> Row:
    """All sides and the machine, taken in turns."""
    arrays, threads = _inputs(shape), machine.threads
    sides = {
        "kernel": _steps(shape, _ours(threads, library), arrays),
        "linear_attention": _steps(shape, _linear_attention(shape, threads), _as_heads(arrays)),
        "body": _steps(shape, _ours(threads, None), arrays),
        "torch": [partial(selective_scan, *map(torch.from_numpy, arrays.values()))],
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    bandwidths = []
    for number in range(DECODE_ROUNDS if shape.seq == 1 else PREFILL_ROUNDS):
        for name, steps in sides.items():
            if shape.seq > 1 and name != "kernel" and number > SLOW_ROUNDS:
                continue
            begin = time.perf_counter()
            steps[number % len(steps)]()
            if number:  # the first touches memory and makes scratch
                taken[name].append(time.perf_counter() - begin)
        if shape.seq == 1 and number % 20 == 0:
            bandwidths.append(machine.read_bytes_per_second())
    medians = {name: statistics.median(times) * 1e6 for name, times in taken.items()}
    fraction = None
    if bandwidths:
        fraction = shape.moved_bytes / min(taken["kernel"]) / max(bandwidths)
    return Row(**asdict(shape), microseconds=medians.pop("kernel"), **medians, fraction=fraction)


SHAPES = [
    Shape(512, 1536, 16),
    Shape(512, 4096, 16),
    Shape(1, 1536, 16),
    Shape(1, 4096, 16),
    Shape(1, 8192, 16),
]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    library = str(build(buildable_host()).path)
    machine = Machine(options.threads)
    _check(Shape(40, 96, 16), options.threads, library)
    with torch.no_grad():
        rows = [_compare(shape, machine, library) for shape in SHAPES]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{options.threads} threads; medians of calls taken in turns, in microseconds")
    print(" seq channels states |   kernel | LinearAttention  ratio |", end="")
    print("      body  ratio |     torch  ratio |")
    for row in rows:
        line = f"{row.seq:4} {row.channels:8} {row.states:6} | {row.microseconds:8.0f} |"
        for width, other in ((15, row.linear_attention), (9, row.body), (9, row.torch)):
            line += f" {other:{width}.0f} {other / row.microseconds:6.1f} |"
        print(line + (f" {row.fraction:.2f} of bandwidth" if row.fraction else ""))


if __name__ == "__main__":
    main()
