"""The kernels of StateSpaceDual and GatedDelta against ONNX Runtime's LinearAttention and against
their own bodies in standard ops, and against the machine: the fraction of its read bandwidth that
decoding reaches (the state, read and written) and of its float32 peak that prefill reaches.

    python bench/state_space.py [--threads 2] [--json]

LinearAttention has neither dt nor a skip: the products that they take are part of its time. The
operations of prefill are those of the form in chunks that the kernels compute, triangles counted
once; per step and head they are fewer than those of the plain recurrence.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol

import numpy as np
import onnx
import onnxruntime as ort
from machine import Machine
from onnx import TensorProto, helper, parser

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.compiler import build, buildable_host
from edgewright.custom_ops.gated_delta.body import GatedDelta
from edgewright.custom_ops.state_space_dual.body import StateSpaceDual

BODIES = {"StateSpaceDual": StateSpaceDual, "GatedDelta": GatedDelta}
DECODE_ROUNDS, PREFILL_ROUNDS = 120, 10
SLOW_ROUNDS = 3  # of bodies in prefill, which take many times as long
# Decoding goes from state to state, as it does from layer to layer, so that none is read from the
# processor's last cache.
COLD_BYTES = 128 << 20
Arrays = dict[str, np.ndarray]
Step = Callable[[], object]


class Shape(Protocol):
    @property
    def seq(self) -> int: ...
    @property
    def op(self) -> str: ...
    @property
    def attributes(self) -> Mapping[str, int | float]: ...
    @property
    def state(self) -> tuple[int, ...]: ...
    @property
    def operations(self) -> float: ...
    def inputs(self) -> Arrays: ...
    def linear_attention(self) -> str: ...


@dataclass(frozen=True)
class StateSpace:
    seq: int
    heads: int
    groups: int
    size: int
    width: int
    op = "StateSpaceDual"
    chunk = 64

    @property
    def attributes(self) -> Mapping[str, int | float]:
        return {"groups": self.groups}

    @property
    def state(self) -> tuple[int, ...]:
        return (1, self.heads, self.size, self.width)

    @property
    def operations(self) -> float:
        by_head = self.chunk * self.width + 4 * self.size * self.width
        return self.seq * float(self.heads * by_head + self.groups * self.chunk * self.size)

    def inputs(self) -> Arrays:
        rng = np.random.default_rng(0)
        narrow = (1, self.seq, self.groups * self.size)
        return {
            "x": rng.standard_normal((1, self.seq, self.heads * self.width), np.float32),
            "dt": rng.uniform(1e-3, 0.1, (1, self.seq, self.heads)).astype(np.float32),
            "a": -rng.uniform(1, 16, self.heads).astype(np.float32),
            "b": rng.standard_normal(narrow, np.float32),
            "c": rng.standard_normal(narrow, np.float32),
            "skip": np.ones(self.heads, np.float32),
            "state": rng.standard_normal(self.state, np.float32),
            "length": np.array([self.seq]),
        }

    def linear_attention(self) -> str:
        seq, heads, width = self.seq, self.heads, self.width
        flat, narrow = (
            f"float[1,{seq},{heads * width}]",
            f"float[1,{seq},{self.groups * self.size}]",
        )
        state = "float[" + ",".join(map(str, self.state)) + "]"
        return f"""
        recurrence ({flat} x, float[1,{seq},{heads}] dt, float[{heads}] a, {narrow} b, {narrow} c,
                    float[{heads}] skip, {state} state) => ({flat} y, {state} state_out) {{
            apart = Constant <value_ints = [1, {seq}, {heads}, {width}]> ()
            flat = Constant <value_ints = [1, {seq}, {heads * width}]> ()
            last = Constant <value_ints = [-1]> ()
            xs = Reshape (x, apart)
            rate = Unsqueeze (dt, last)
            weighted = Mul (xs, rate)
            value = Reshape (weighted, flat)
            decay = Mul (dt, a)
            read, state_out = com.microsoft.LinearAttention <
                q_num_heads = {self.groups}, kv_num_heads = {heads}, update_rule = "gated",
                scale = 1.0
            > (c, b, value, state, decay)
            column = Unsqueeze (skip, last)
            skipped = Mul (xs, column)
            more = Reshape (skipped, flat)
            y = Add (read, more)
        }}"""


@dataclass(frozen=True)
class Delta:
    seq: int
    heads: int
    key_heads: int
    size: int
    width: int
    by_channel: bool = False
    op = "GatedDelta"
    chunk = 32

    @property
    def attributes(self) -> Mapping[str, int | float]:
        return {"num_heads": self.heads, "scale": self.size**-0.5}

    @property
    def state(self) -> tuple[int, ...]:
        return (1, self.heads, self.size, self.width)

    @property
    def operations(self) -> float:
        by_head = 6 * self.size * self.width + 2 * self.chunk * self.width
        scores = 2 * self.chunk * self.size
        count = self.heads if self.by_channel else self.key_heads
        return self.seq * float(self.heads * by_head + count * scores)

    def inputs(self) -> Arrays:
        rng = np.random.default_rng(0)

        def unit() -> np.ndarray:
            values = rng.standard_normal((1, self.seq, self.key_heads, self.size), np.float32)
            values /= np.linalg.norm(values, axis=-1, keepdims=True)
            return values.reshape(1, self.seq, -1)

        channels = self.heads * (self.size if self.by_channel else 1)
        return {
            "query": unit(),
            "key": unit(),
            "value": rng.standard_normal((1, self.seq, self.heads * self.width), np.float32),
            "decay": -rng.uniform(1e-3, 0.5, (1, self.seq, channels)).astype(np.float32),
            "beta": rng.random((1, self.seq, self.heads), np.float32),
            "state": rng.standard_normal(self.state, np.float32),
            "length": np.array([self.seq]),
        }

    def linear_attention(self) -> str:
        def kind(width: int) -> str:
            return f"float[1,{self.seq},{width}]"

        keys, values = kind(self.key_heads * self.size), kind(self.heads * self.width)
        state = "float[" + ",".join(map(str, self.state)) + "]"
        channels = self.heads * (self.size if self.by_channel else 1)
        return f"""
        recurrence ({keys} query, {keys} key, {values} value, {kind(channels)} decay,
                    {kind(self.heads)} beta, {state} state) => ({values} y, {state} state_out) {{
            y, state_out = com.microsoft.LinearAttention <
                q_num_heads = {self.key_heads}, kv_num_heads = {self.heads},
                update_rule = "gated_delta", scale = {self.size**-0.5}
            > (query, key, value, state, decay, beta)
        }}"""


@dataclass(frozen=True)
class Row:
    """Medians. `fraction` is between best passes: of bandwidth when seq is 1, of the peak else."""

    model: str
    op: str
    seq: int
    microseconds: float
    linear_attention: float
    body: float
    fraction: float


def _session(model: onnx.ModelProto, threads: int, library: str | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def _ours(shape: Shape, threads: int, library: str | None) -> ort.InferenceSession:
    """With a library the kernel, without the body."""
    spec = OPS[shape.op]
    names = [tensor.name for tensor in spec.inputs]
    outputs = [tensor.name for tensor in spec.outputs]
    node = helper.make_node(shape.op, names, outputs, domain=DOMAIN, **shape.attributes)

    def infos(given: list[str]) -> list[onnx.ValueInfoProto]:
        kinds = {"length": TensorProto.INT64}
        return [helper.make_tensor_value_info(n, kinds.get(n, 1), None) for n in given]

    graph = helper.make_graph([node], "recurrence", infos(names), infos(outputs))
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    functions = [] if library else [BODIES[shape.op].to_function_proto()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    return _session(model, threads, library)


def _theirs(shape: Shape, threads: int) -> ort.InferenceSession:
    header = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
    return _session(parser.parse_model(header + shape.linear_attention()), threads, None)


def _steps(shape: Shape, session: ort.InferenceSession, arrays: Arrays) -> list[Step]:
    """A call for each of several states, each bound as input and output."""
    copies = -(-COLD_BYTES // arrays["state"].nbytes) if shape.seq == 1 else 1
    names = {value.name for value in session.get_inputs()}
    steps: list[Step] = []
    for _ in range(copies):
        binding = session.io_binding()
        for name in names:
            value = ort.OrtValue.ortvalue_from_numpy(arrays[name].copy())
            binding.bind_ortvalue_input(name, value)
            if name == "state":
                binding.bind_ortvalue_output("state_out", value)
        binding.bind_output("y", "cpu")
        steps.append(partial(session.run_with_iobinding, binding))
    return steps


def _check(shape: Shape, threads: int, library: str) -> None:
    """They compute the same."""
    arrays = shape.inputs()
    theirs = _theirs(shape, threads)
    taken = {value.name: arrays[value.name] for value in theirs.get_inputs()}
    for ours, other in zip(
        _ours(shape, threads, library).run(None, arrays), theirs.run(None, taken), strict=True
    ):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-3)


def _compare(model: str, shape: Shape, machine: Machine, library: str) -> Row:
    """All sides and the machine, taken in turns."""
    arrays, threads = shape.inputs(), machine.threads
    sides = {
        "kernel": _steps(shape, _ours(shape, threads, library), arrays),
        "linear_attention": _steps(shape, _theirs(shape, threads), arrays),
        "body": _steps(shape, _ours(shape, threads, None), arrays),
    }
    is_decode = shape.seq == 1
    limit = machine.read_bytes_per_second if is_decode else machine.operations_per_second
    taken: dict[str, list[float]] = {name: [] for name in sides}
    limits = []
    for number in range(1 + (DECODE_ROUNDS if is_decode else PREFILL_ROUNDS)):
        for name, steps in sides.items():
            if not is_decode and name == "body" and number > SLOW_ROUNDS:
                continue
            begin = time.perf_counter()
            steps[number % len(steps)]()
            if number:  # the first touches memory and makes scratch
                taken[name].append(time.perf_counter() - begin)
        if number % (12 if is_decode else 2) == 0:
            limits.append(limit())
    medians = {name: statistics.median(times) * 1e6 for name, times in taken.items()}
    work = 2 * arrays["state"].nbytes if is_decode else shape.operations
    fraction = work / min(taken["kernel"]) / max(limits)
    microseconds = medians.pop("kernel")
    return Row(model, shape.op, shape.seq, microseconds, **medians, fraction=fraction)


def _shapes(seq: int) -> Mapping[str, Shape]:
    """One layer of each model."""
    return {
        "mamba2-1.3b": StateSpace(seq, 64, 1, 128, 64),
        "granite-4.0-h-1b": StateSpace(seq, 48, 1, 128, 64),
        "nemotron-h-8b": StateSpace(seq, 128, 8, 128, 64),
        "qwen3-next-80b": Delta(seq, 32, 16, 128, 128),
        "kimi-linear-48b": Delta(seq, 32, 32, 128, 128, by_channel=True),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    library = str(build(buildable_host()).path)
    machine = Machine(options.threads)
    for small in (
        StateSpace(40, 8, 2, 16, 24),
        Delta(40, 6, 2, 16, 24),
        Delta(40, 2, 2, 16, 24, by_channel=True),
    ):
        _check(small, options.threads, library)
    shapes = [*_shapes(512).items(), *_shapes(1).items()]
    rows = [_compare(model, shape, machine, library) for model, shape in shapes]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print(f"{options.threads} threads; medians of calls taken in turns, in microseconds")
    print("model             op              seq |   kernel | LinearAttention  ratio |", end="")
    print("      body  ratio |")
    for row in rows:
        line = f"{row.model:16}  {row.op:14} {row.seq:4} | {row.microseconds:8.0f} |"
        for width, other in ((15, row.linear_attention), (9, row.body)):
            line += f" {other:{width}.0f} {other / row.microseconds:6.1f} |"
        bound = "bandwidth" if row.seq == 1 else "peak"
        print(f"{line} {row.fraction:.2f} of {bound}")


if __name__ == "__main__":
    main()
