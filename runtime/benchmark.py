"""A package goes in; its speed here, its memory, and its share of the machine's bandwidth come out.

Prompts are random tokens: the work does not depend on which they are, unless experts are routed.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.bandwidth import measure_bandwidth
from edgewright.runtime.ort import load_onnxruntime
from edgewright.runtime.process_memory import ProcessMemory, bytes_read_through_maps
from edgewright.runtime.session import Session

_TOUCH_SAMPLES = 4
_READ = "pages of mapped weights that one step reads: of routed experts the chosen ones"
_ALL = "all weights, read or not: this system does not show which are"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure. The depth is the number of tokens already in the state."""

    depths: tuple[int, ...] = (0, 512, 2048)
    prompt_tokens: int = 512
    decode_tokens: int = 32
    repeats: int = 3

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "decode_tokens", "repeats"):
            if getattr(self, name) < 1:
                raise SessionError(f"{name} is {getattr(self, name)}; at least 1 is required")
        if not self.depths or min(self.depths) < 0:
            raise SessionError("depths must be numbers of tokens, 0 or more, at least one of them")

    def within(self, context: int) -> Plan:
        """The part of the plan that the context has room for."""
        if context < 2:
            raise SessionError(f"a context of {context} tokens is too short to measure")
        decode = min(self.decode_tokens, context // 2)
        prompt = min(self.prompt_tokens, context // 2)
        depths = sorted({d for d in self.depths if d + max(prompt, decode) <= context})
        return Plan(tuple(depths) or (0,), prompt, decode, self.repeats)


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats, at one depth."""

    depth: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    bandwidth_fraction: float  # weight bytes a second over what memory gives: a lower bound


@dataclass(frozen=True)
class Benchmark:
    """Everything `edgewright bench` prints and writes. None: this system does not say."""

    package: str
    variant: str
    kernels: str
    threads: int
    cpu: str
    onnxruntime: str
    parameters: int
    load_seconds: float
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    speeds: tuple[Speed, ...]
    depths_left_out: tuple[int, ...]
    state_bytes_per_token: int
    state_bytes_fixed: int
    peak_memory_bytes: int | None
    private_memory_bytes: int | None
    weight_bytes_per_token: int
    weight_bytes_counted: str
    memory_bandwidth_bytes_per_second: float
    memory_bandwidth_method: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """How the session is opened."""

    provider: str | None = None
    capacity: int | None = None
    threads: int | None = None


def run_benchmark(
    package: str | os.PathLike[str],
    plan: Plan,
    options: Options,
    progress: Progress = lambda _: None,
) -> Benchmark:
    load_onnxruntime()  # importing it is not loading a package
    began = time.perf_counter()
    session = Session.open(
        package, options.provider, capacity=options.capacity, threads=options.threads
    )
    load_seconds = time.perf_counter() - began
    fitting = plan.within(session.context_limit)
    tokens = np.random.default_rng(0)
    progress("one pass to warm up")
    _pass(session, fitting, fitting.depths[-1], tokens)
    memory = ProcessMemory.read()
    weight_bytes, counted = _weight_bytes_per_token(session, tokens)
    progress("memory bandwidth")
    bandwidth = measure_bandwidth(session.threads)
    timings = []
    for depth in fitting.depths:
        progress(f"depth {depth}")
        timings.append((depth, *_time_depth(session, fitting, depth, tokens)))
    manifest = session.package.manifest
    states = manifest.variant(session.variant_name).states
    return Benchmark(
        package=session.package.root.name,
        variant=session.variant_name,
        kernels=session.kernels,
        threads=session.threads,
        cpu=_cpu_name(),
        onnxruntime=str(load_onnxruntime().__version__),
        parameters=manifest.model.parameters,
        load_seconds=load_seconds,
        prompt_tokens=fitting.prompt_tokens,
        decode_tokens=fitting.decode_tokens,
        repeats=fitting.repeats,
        speeds=tuple(
            Speed(depth, prefill, decode, weight_bytes * decode / bandwidth.bytes_per_second)
            for depth, prefill, decode in timings
        ),
        depths_left_out=tuple(sorted(set(plan.depths) - set(fitting.depths))),
        state_bytes_per_token=states.bytes_per_token,
        state_bytes_fixed=states.bytes_fixed,
        peak_memory_bytes=memory.peak_bytes,
        private_memory_bytes=memory.private_bytes,
        weight_bytes_per_token=weight_bytes,
        weight_bytes_counted=counted,
        memory_bandwidth_bytes_per_second=bandwidth.bytes_per_second,
        memory_bandwidth_method=bandwidth.method,
    )


def _pass(session: Session, plan: Plan, depth: int, random: np.random.Generator) -> None:
    """All that is measured, once: what memory it takes is taken now."""
    session.reset()
    _fill(session, depth, random)
    _fill(session, plan.prompt_tokens, random)
    session.reset()
    _fill(session, depth, random)
    session.decode(1 % session.vocab_size)


def _time_depth(
    session: Session, plan: Plan, depth: int, random: np.random.Generator
) -> tuple[float, float]:
    """Prefill and decode tokens a second, after `depth` tokens."""
    session.reset()
    _fill(session, depth, random)
    state = session.snapshot() if depth else None
    prefills, decodes = [], []

    def rewind() -> None:
        session.reset() if state is None else session.resume(state)

    for _ in range(plan.repeats):
        rewind()
        prefills.append(_seconds(lambda: _fill(session, plan.prompt_tokens, random)))
        rewind()
        for token in _draw(session, plan.decode_tokens, random):
            decodes.append(_seconds(lambda token=token: session.decode(int(token))))  # type: ignore[misc]
    return plan.prompt_tokens / statistics.median(prefills), 1 / statistics.median(decodes)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _fill(session: Session, count: int, random: np.random.Generator) -> None:
    if count:
        session.prefill(_draw(session, count, random))


def _draw(session: Session, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    return random.integers(0, session.vocab_size, count, dtype=np.int64)


def _weight_bytes_per_token(session: Session, random: np.random.Generator) -> tuple[int, str]:
    root = session.package.root
    session.reset()
    samples: list[int] = []
    for token in _draw(session, _TOUCH_SAMPLES, random):
        read = bytes_read_through_maps(root, lambda token=token: session.decode(int(token)))  # type: ignore[misc]
        if read:
            samples.append(read)
        if session.lengths[0] + 2 > session.context_limit:
            session.reset()
    variant = session.package.manifest.variant(session.variant_name)
    files = session.package.manifest.files
    stored = sum(files[path].size for path in set(variant.weights))
    # Whole pages may be more than what is stored.
    return (min(stored, round(statistics.mean(samples))), _READ) if samples else (stored, _ALL)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
