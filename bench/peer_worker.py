"""One engine in a process of its own: lines of JSON come in on stdin, answers go out on stdout.

llama.cpp's side needs numpy, gguf and llama_cpp, onnxruntime-genai's numpy and itself; neither
needs anything of edgewright.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 512  # tokens of a prefill at once
_PROBE = 64
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
_Bound = tuple[Ids, Floats, Any]  # tokens, logits and what binds them


class Engine(ABC):
    """A model with one sequence, which `clear` empties and `feed` continues."""

    vocab_size: int

    @abstractmethod
    def clear(self) -> None: ...

    @abstractmethod
    def feed(self, ids: Ids) -> Floats:
        """The logits after the last of at most CHUNK tokens."""

    @property
    @abstractmethod
    def cache_bytes(self) -> tuple[int, int]:
        """What one token adds, and what a sequence takes however long it is."""


class Ours(Engine):
    """The engine of edgewright's session, with buffers whose capacity is what is asked for."""

    def __init__(self, model: Path, threads: int, capacity: int) -> None:
        from edgewright.artifacts import Package
        from edgewright.runtime.buffers import StateBuffers
        from edgewright.runtime.engine import Engine as Runtime
        from edgewright.runtime.engine import choose_variant

        package = Package.open(model)
        self._engine = Runtime.open(package, choose_variant(package, None), threads)
        self._buffers = StateBuffers(self._engine.layout, 1, capacity)
        self._start = np.zeros(1, np.int64)
        self.vocab_size = self._engine.vocab_size
        self._decode = self._bound(np.zeros((1, 1), np.int64))

    def clear(self) -> None:
        self._buffers.clear(int(self._start[0]))
        self._start[0] = 0

    def feed(self, ids: Ids) -> Floats:
        bound = self._decode if len(ids) == 1 else self._bound(ids[None].copy())
        tokens, logits, binding = bound
        tokens[0] = ids
        self._engine.run(binding)
        self._start += len(ids)
        last: Floats = logits[0, 0]
        return last

    def _bound(self, tokens: Ids) -> _Bound:
        count = tokens.shape[1]
        logits = np.empty((1, 1, self.vocab_size), np.float32)
        inputs = (tokens, self._start, np.array([count]), np.array([[count - 1]]))
        return tokens, logits, self._engine.bind(inputs, logits, self._buffers)

    @property
    def cache_bytes(self) -> tuple[int, int]:
        layout = self._engine.layout
        return layout.bytes_per_token, layout.bytes_fixed


class LlamaCpp(Engine):
    """`flash` is llama.cpp's own switch: -1 leaves the choice to it, 0 is off, 1 on."""

    def __init__(self, model: Path, threads: int, capacity: int, flash: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C holds no reference
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        loaded = llama_cpp.llama_model_load_from_file(
            os.fsencode(model), llama_cpp.llama_model_default_params()
        )
        if loaded is None:
            raise SystemExit(f"llama.cpp cannot load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = capacity, CHUNK, CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = flash
        self._context = llama_cpp.llama_init_from_model(loaded, params)
        if self._context is None:
            raise SystemExit(f"llama.cpp cannot make a context of {capacity} tokens for {model}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        self.clear()
        empty = self._state_bytes()
        self.feed(np.ones(1, np.int64))
        one = self._state_bytes()
        self.feed(np.ones(_PROBE, np.int64))
        per_token = (self._state_bytes() - one) // _PROBE
        self._cache = per_token, one - empty - per_token
        self.clear()

    def _state_bytes(self) -> int:
        return int(self._api.llama_state_seq_get_size(self._context, 0))

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def feed(self, ids: Ids) -> Floats:
        tokens = (self._api.llama_token * len(ids))(*ids.tolist())
        batch = self._api.llama_batch_get_one(tokens, len(ids))
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama.cpp decoded nothing: status {status}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.vocab_size,)).copy()

    @property
    def cache_bytes(self) -> tuple[int, int]:
        return self._cache


class Genai(Engine):
    """onnxruntime-genai's own generator on a folder that its model builder made."""

    def __init__(self, model: Path, threads: int, capacity: int) -> None:
        import onnxruntime_genai

        self._api = onnxruntime_genai
        config = onnxruntime_genai.Config(str(model))
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._model = onnxruntime_genai.Model(config)
        params = onnxruntime_genai.GeneratorParams(self._model)
        params.set_search_options(max_length=capacity, do_sample=False)
        self._generator = onnxruntime_genai.Generator(self._model, params)
        settings = json.loads((model / "genai_config.json").read_text())["model"]
        self.vocab_size = settings["vocab_size"]
        decoder = settings["decoder"]
        values = decoder["num_hidden_layers"] * decoder["num_key_value_heads"]
        self._cache = 2 * 4 * values * decoder["head_size"], 0  # float32 on a CPU

    def clear(self) -> None:
        self._generator.rewind_to(0)

    def feed(self, ids: Ids) -> Floats:
        self._generator.append_tokens(ids.astype(np.int32))
        return np.array(self._generator.get_logits(), dtype=np.float32).reshape(-1)

    @property
    def cache_bytes(self) -> tuple[int, int]:
        return self._cache


class Transformers(Engine):
    """Its model in eager torch, with its own cache."""

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._model = loaded
        self.vocab_size = loaded.config.vocab_size
        self.clear()

    def clear(self) -> None:
        self._held: dict[str, Any] = {}

    def feed(self, ids: Ids) -> Floats:
        tokens = self._torch.from_numpy(ids[None])
        found = self._model(tokens, use_cache=True, logits_to_keep=1, **self._held)
        name = "past_key_values" if "past_key_values" in found else "cache_params"
        self._held = {name: found[name]}
        return np.asarray(found.logits[0, -1].float().numpy())

    @property
    def cache_bytes(self) -> tuple[int, int]:
        return 0, 0


class Worker:
    """Answers the commands of peers.py."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self.engine = engine
        self.clock = clock

    def describe(self) -> dict[str, object]:
        per_token, fixed = self.engine.cache_bytes
        return {"per_token": per_token, "fixed": fixed}

    def logits(self, ids: list[int], split: int, out: str) -> None:
        """After the first `split` tokens as one prefill, and after each one of the others."""
        self.engine.clear()
        pieces = [ids[:split], *([token] for token in ids[split:])]
        found = [self.engine.feed(np.array(piece)).copy() for piece in pieces]
        np.save(out, np.stack(found))

    def clear(self) -> None:
        self.engine.clear()

    def feed(self, tokens: int) -> float:
        """Seconds of a prefill of so many random tokens."""
        ids = np.random.default_rng(tokens).integers(0, self.engine.vocab_size, tokens)
        begin = self.clock()
        for offset in range(0, tokens, CHUNK):
            self.engine.feed(ids[offset : offset + CHUNK])
        return self.clock() - begin

    def decode(self, tokens: int) -> list[float]:
        """Seconds of each greedy step."""
        token, seconds = 1, []
        for _ in range(tokens):
            begin = self.clock()
            token = int(self.engine.feed(np.array([token])).argmax())
            seconds.append(self.clock() - begin)
        return seconds


def open_engine(arguments: dict[str, Any]) -> Engine:
    kind, model = arguments.pop("kind"), Path(arguments.pop("model"))
    if kind == "ours":
        return Ours(model, **arguments)
    if kind == "torch":
        return Transformers(model, **arguments)
    if kind == "genai":
        return Genai(model, **arguments)
    return LlamaCpp(model, **arguments)


def quantise_gguf(model: Path, out: Path, kind: str) -> None:
    """As llama.cpp mixes its types by itself, without an importance matrix."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    arguments = os.fsencode(model), os.fsencode(out), ctypes.byref(params)
    if status := llama_cpp.llama_model_quantize(*arguments):
        raise SystemExit(f"llama.cpp cannot quantise {model} to {kind}: status {status}")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no answer
    first = json.loads(sys.stdin.readline())
    if first["kind"] == "gguf":
        from gguf_checkpoint import write_gguf

        write_gguf(Path(first["model"]), Path(first["out"]))
        print(json.dumps(None), file=answers)
        return
    if first["kind"] == "quantise":
        quantise_gguf(Path(first["model"]), Path(first["out"]), first["type"])
        print(json.dumps(None), file=answers)
        return
    if first["kind"] == "genai-folder":
        import onnxruntime_genai

        print(json.dumps(str(Path(onnxruntime_genai.__file__).parent)), file=answers)
        return
    clock = time.process_time if first.pop("clock") == "cpu" else time.perf_counter
    worker = Worker(open_engine(first), clock)
    print(json.dumps(worker.describe()), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(worker, command.pop("do"))(**command)), file=answers)


if __name__ == "__main__":
    main()
