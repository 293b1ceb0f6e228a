"""A variant with a prefill and a decode graph goes in; both, opened, come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgewright.artifacts import Package
from edgewright.artifacts.manifest import StaticSizes, Variant
from edgewright.artifacts.states import StateLayout
from edgewright.runtime.buffers import check_layout
from edgewright.runtime.context_binary import compiled_graph
from edgewright.runtime.engine import (
    TOKEN_INPUTS,
    Kernels,
    check_interface,
    fingerprint_of,
    open_graph,
    run_error,
    settle_memory,
)
from edgewright.runtime.execution_providers import execution_provider
from edgewright.runtime.host import default_threads
from edgewright.runtime.ort import Array, Binding, OrtSession, OrtValue, wrap

StaticRole = Literal["prefill", "decode"]
ROLES: tuple[StaticRole, ...] = ("prefill", "decode")
_TOKEN_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
}


@dataclass(frozen=True)
class Bound:
    """One graph on one row's memory: what it reads and writes, and the binding of both."""

    ids: Array  # [1, seq]
    start: Array  # [1]
    length: Array  # [1]
    wanted: Array  # [1, 1]
    logits: Array  # [1, 1, vocab]
    given: tuple[Array, ...]  # what the graph gives for each state
    inputs: Mapping[str, OrtValue]
    binding: Binding


@dataclass(frozen=True)
class StaticEngine:
    """Shared by a session and its forks: it holds weights and threads, but no state."""

    sessions: Mapping[StaticRole, OrtSession]
    sizes: StaticSizes
    layout: StateLayout
    vocab_size: int
    fingerprint: str
    kernels: Kernels
    threads: int
    copies_inputs: bool

    @classmethod
    def open(
        cls, package: Package, variant: Variant, threads: int | None, large_pages: bool = True
    ) -> StaticEngine:
        assert variant.static is not None
        check_layout(variant)
        count = default_threads() if threads is None else threads
        settle_memory(package, variant, large_pages and variant.compiled is None)
        # States mean the same whether or not the graphs were compiled ahead.
        graphs = {role: package.read_verified(variant.graphs[role]) for role in ROLES}
        sessions: dict[StaticRole, OrtSession] = {}
        for role, graph in graphs.items():
            compiled = variant.compiled and compiled_graph(package, variant, role)
            sessions[role], kernels = open_graph(package, variant, compiled or graph, count, role)
            check_interface(sessions[role], variant, role)
        provider = execution_provider(variant.provider)
        return cls(
            sessions=sessions,
            sizes=variant.static,
            layout=variant.states,
            vocab_size=package.manifest.model.vocab_size,
            fingerprint=fingerprint_of(list(graphs.values()), variant.states),
            kernels=kernels,
            threads=count,
            copies_inputs=provider is not None and provider.has_memory,
        )

    def bind(self, role: StaticRole, past: tuple[Array, ...]) -> Bound:
        """`past`: one row of each state. What is appended in the graph is written where it is read;
        everything else the graph gives goes to memory of its own."""
        session = self.sessions[role]
        seq = self.sizes.chunk if role == "prefill" else 1
        kind = self._token_type(session)
        shapes: tuple[tuple[int, ...], ...] = ((1, seq), (1,), (1,), (1, 1))
        ids, start, length, wanted = tokens = [np.zeros(shape, kind) for shape in shapes]
        logits = np.zeros((1, 1, self.vocab_size), np.float32)
        binding = session.io_binding()
        inputs = {name: wrap(a) for name, a in zip(TOKEN_INPUTS, tokens, strict=True)}
        binding.bind_ortvalue_output("logits", wrap(logits))
        given = []
        for spec, array in zip(self.layout, past, strict=True):
            value = inputs[spec.input_name] = wrap(array)
            out = array
            if spec.growth != "append" or spec.update == "delta":
                out = np.zeros(spec.resolve(1, seq), array.dtype)
                value = wrap(out)
            binding.bind_ortvalue_output(spec.output_name, value)
            given.append(out)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        return Bound(ids, start, length, wanted, logits, tuple(given), inputs, binding)

    def run(self, role: StaticRole, bound: Bound) -> None:
        try:
            for name, value in bound.inputs.items() if self.copies_inputs else ():
                bound.binding.bind_ortvalue_input(name, value)
            self.sessions[role].run_with_iobinding(bound.binding)
        except Exception as error:  # the binding raises its own types, and RuntimeError besides
            raise run_error(error) from error

    @staticmethod
    def _token_type(session: OrtSession) -> type[np.generic]:
        types = {argument.name: argument.type for argument in session.get_inputs()}
        return _TOKEN_TYPES.get(types["input_ids"], np.int64)
