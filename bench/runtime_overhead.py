"""What the runtime adds to a bare ONNX Runtime loop, a decode step: at most 5% on a 100M model.

    python bench/runtime_overhead.py [--package PACKAGE] [--prompt 64] [--json]

Both sides run the same graph, session and buffers' sizes, in turns of a few steps each, so that
whatever else the machine does falls on both. Without a package a 100M stand-in is made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stand_in import write_stand_in

from edgewright.artifacts import Package
from edgewright.runtime import Session
from edgewright.runtime.buffers import StateBuffers
from edgewright.runtime.engine import Engine, choose_variant

TURN_STEPS = 8
TURNS = 60
WARM_UP_TURNS = 5

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--package", type=Path, help="measure this one, not a stand-in")
    parser.add_argument("--prompt", type=int, default=64, help="tokens held when decoding begins")
    parser.add_argument("--threads", type=int, help="default: one for each physical core")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.package is not None:
        report(measure(arguments.package, arguments.prompt, arguments.threads), arguments.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "package"
        write_stand_in(package)
        report(measure(package, arguments.prompt, arguments.threads), arguments.json)


def measure(path: Path, prompt_tokens: int, threads: int | None) -> dict[str, float | int | str]:
    package = Package.open(path)
    variant = choose_variant(package, None)
    engine = Engine.open(package, variant, threads)
    limit = package.manifest.model.max_context
    steps = TURN_STEPS * (TURNS + WARM_UP_TURNS)
    if prompt_tokens + steps > limit:
        raise SystemExit(f"the context holds {limit} tokens; {prompt_tokens + steps} are needed")
    prompt = np.random.default_rng(0).integers(0, engine.vocab_size, prompt_tokens).tolist()

    def session() -> Session:
        return Session(package, engine, limit, None, variant.name)

    sides: dict[str, Step] = {
        "bare": bare_loop(engine, prompt, prompt_tokens + steps),
        "decode": decode_loop(session(), prompt),
        "generate": generate_loop(session(), prompt, steps),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + WARM_UP_TURNS):
        for name, step in sides.items():
            for _ in range(TURN_STEPS):
                began = time.perf_counter()
                step()
                if turn >= WARM_UP_TURNS:
                    times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "parameters": package.manifest.model.parameters,
        "kernels": engine.kernels,
        "threads": engine.threads,
        "bare_ms": medians["bare"] * 1e3,
        "decode_overhead": medians["decode"] / medians["bare"] - 1,
        "generate_overhead": medians["generate"] / medians["bare"] - 1,
    }


def bare_loop(engine: Engine, prompt: list[int], capacity: int) -> Step:
    """The least that greedy decoding can be: run, argmax, and the next token in place."""
    buffers = StateBuffers(engine.layout, 1, capacity)
    ids = np.array([prompt], dtype=np.int64)
    start, length = np.zeros(1, dtype=np.int64), np.array([len(prompt)], dtype=np.int64)
    last = np.array([[len(prompt) - 1]], dtype=np.int64)
    logits = np.empty((1, 1, engine.vocab_size), dtype=np.float32)
    engine.run(engine.bind((ids, start, length, last), logits, buffers))
    start += len(prompt)
    length[:] = 1
    token = np.array([[int(logits.argmax())]], dtype=np.int64)
    first = np.zeros((1, 1), dtype=np.int64)
    binding = engine.bind((token, start, length, first), logits, buffers)
    run = engine.session.run_with_iobinding

    def step() -> None:
        run(binding)
        start[0] += 1
        token[0, 0] = logits.argmax()

    return step


def decode_loop(session: Session, prompt: list[int]) -> Step:
    """The public call, with a copy of the logits for the caller at every step."""
    logits = session.prefill(prompt)

    def step() -> None:
        nonlocal logits
        logits = session.decode(int(logits.argmax()))

    return step


def generate_loop(session: Session, prompt: list[int], steps: int) -> Step:
    """What generate does between two tokens, stop ids looked for."""
    pieces = session._start(prompt, steps + 2, {"stop_ids": (0,)}, read_text=False)[1]
    next(pieces)

    def step() -> None:
        next(pieces, None)

    return step


def report(measured: dict[str, float | int | str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(measured))
        return
    print(f"{measured['parameters']:,} parameters, {measured['kernels']} kernels")
    print(f"bare loop   {measured['bare_ms']:.3f} ms a token, {measured['threads']} threads")
    for side in ("decode", "generate"):
        print(f"{side:10}  {measured[f'{side}_overhead']:+.2%}")


if __name__ == "__main__":
    main()
