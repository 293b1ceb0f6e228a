"""A package's variant goes in; a graph that ONNX Runtime can run, weights mapped, comes out."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgewright.artifacts import Package, trust
from edgewright.artifacts.errors import EdgewrightError, PackageError, SessionError
from edgewright.artifacts.host_target import host_target
from edgewright.artifacts.manifest import GraphRole, Variant
from edgewright.artifacts.states import StateLayout
from edgewright.runtime.buffers import StateBuffers, check_layout
from edgewright.runtime.execution_providers import EXECUTION_PROVIDERS, execution_provider
from edgewright.runtime.host import default_threads
from edgewright.runtime.large_pages import read_into_large_pages
from edgewright.runtime.ort import (
    EXTERNAL_DATA,
    Array,
    Binding,
    OrtSession,
    load_onnxruntime,
    one_line,
    wrap,
)
from edgewright.runtime.process_memory import return_large_blocks

Kernels = Literal["native", "portable"]

TOKEN_INPUTS = ("input_ids", "start", "length", "logit_index")
_CONFIG = {
    # Repacked weights would be private copies of what is mapped.
    "session.disable_prepacking": "1",
}
# Folding would turn the mapped weights that a function body unpacks into private ones.
_DISABLED_OPTIMIZERS = ["ConstantFolding"]

_log = logging.getLogger(__name__)
_warned: set[str] = set()


def choose_variant(package: Package, provider: str | None) -> Variant:
    """The first variant this runtime knows how to run, or the one for the provider asked for."""
    variants = package.manifest.variants
    wanted = tuple(EXECUTION_PROVIDERS) if provider is None else (provider,)
    for name in wanted:
        for variant in variants:
            if variant.provider == name and execution_provider(name) is not None:
                return variant
    has = ", ".join(sorted({variant.provider for variant in variants}))
    raise SessionError(
        f"no variant for {' or '.join(wanted)}; the package has {has}, and this runtime runs "
        f"{', '.join(EXECUTION_PROVIDERS)}"
    )


@dataclass(frozen=True)
class Engine:
    """Shared by a session and its forks: it holds weights and threads, but no state."""

    session: OrtSession
    layout: StateLayout
    vocab_size: int
    fingerprint: str
    kernels: Kernels
    threads: int
    shrink_after: object

    @classmethod
    def open(
        cls, package: Package, variant: Variant, threads: int | None, large_pages: bool = True
    ) -> Engine:
        check_layout(variant)
        graph = package.read_verified(variant.graphs["step"])
        count = default_threads() if threads is None else threads
        settle_memory(package, variant, large_pages)
        session, kernels = open_graph(package, variant, graph, count)
        check_interface(session, variant, "step")
        return cls(
            session=session,
            layout=variant.states,
            vocab_size=package.manifest.model.vocab_size,
            fingerprint=fingerprint_of([graph], variant.states),
            kernels=kernels,
            threads=count,
            shrink_after=_shrinking_run_options(load_onnxruntime()),
        )

    def bind(
        self, tokens: tuple[Array, Array, Array, Array], logits: Array, buffers: StateBuffers
    ) -> Binding:
        """Everything bound to memory of ours; each state to the same memory in and out."""
        binding = self.session.io_binding()
        for name, array in zip(TOKEN_INPUTS, tokens, strict=True):
            binding.bind_ortvalue_input(name, wrap(array))
        binding.bind_ortvalue_output("logits", wrap(logits))
        for spec, value in zip(self.layout, buffers.values, strict=True):
            binding.bind_ortvalue_input(spec.input_name, value)
            binding.bind_ortvalue_output(spec.output_name, value)
        return binding

    def run(self, binding: Binding, shrink: bool = False) -> None:
        """`shrink` gives a prefill's activations back to the system afterwards."""
        try:
            if shrink:
                self.session.run_with_iobinding(binding, self.shrink_after)
            else:
                self.session.run_with_iobinding(binding)
        except Exception as error:  # the binding raises its own types, and RuntimeError besides
            raise run_error(error) from error


def run_error(error: BaseException) -> SessionError:
    return SessionError(f"onnxruntime could not run the graph: {one_line(error)}")


def settle_memory(package: Package, variant: Variant, large_pages: bool) -> None:
    """Before anything is mapped."""
    return_large_blocks()
    if large_pages:
        read_into_large_pages([package.path(path) for path in variant.weights])


def open_graph(
    package: Package, variant: Variant, graph: bytes, threads: int, role: GraphRole = "step"
) -> tuple[OrtSession, Kernels]:
    """The variant's graph, or one made from it, with the package's weights and kernels."""
    ort = load_onnxruntime()
    check_release(ort.__version__, variant)
    library = _trusted_library(package, variant)
    try:
        return _open_session(ort, package, variant, graph, library, threads, role)
    except EdgewrightError:
        raise
    except Exception as error:
        path = variant.graphs[role]
        if variant.compiled is not None:
            path = variant.compiled.graphs[role].graph
        raise PackageError(f"{path}: onnxruntime cannot open it: {one_line(error)}") from error


def check_release(found: str, variant: Variant) -> None:
    def numbers(release: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", release)[:3])

    if numbers(found) < numbers(variant.onnxruntime_min):
        raise SessionError(
            f"onnxruntime {found} is installed; variant {variant.name} needs "
            f"{variant.onnxruntime_min} or newer: pip install -U onnxruntime"
        )


def _trusted_library(package: Package, variant: Variant) -> str | None:
    """The op library for this machine, hashed, if this machine has reason to trust it."""
    path = variant.libraries.get(host_target())
    if path is None:
        if variant.libraries:
            has = ", ".join(variant.libraries)
            _warn_once(f"no op library for {host_target()}, only for {has}: {_SLOWER}")
        return None
    verified = package.verified_path(path)
    if not trust.is_trusted(package.manifest.files[path].sha256):
        _warn_once(f"{path} was not built on this machine and is not loaded: {_SLOWER}")
        return None
    return str(verified)


_SLOWER = "the function bodies run, slower and just as right"


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        _log.warning(message)


def _open_session(
    ort: Any,
    package: Package,
    variant: Variant,
    graph: bytes,
    library: str | None,
    threads: int,
    role: GraphRole,
) -> tuple[OrtSession, Kernels]:
    provider = execution_provider(variant.provider)
    assert provider is not None  # choose_variant
    options = _session_options(ort, threads)
    _say_where_it_lies(options, package, variant, role)
    provider.add_to(ort, options, variant.provider, strict=not variant.fallback)
    kernels: Kernels = "portable"
    if library is not None:
        try:
            options.register_custom_ops_library(library)
            kernels = "native"
        except Exception as error:
            _warn_once(f"{library} cannot be loaded ({one_line(error)}): {_SLOWER}")
            options = _session_options(ort, threads)
            _say_where_it_lies(options, package, variant, role)
    session: OrtSession = ort.InferenceSession(
        graph,
        options,
        providers=None if provider.plugin else [(provider.name, dict(provider.options))],
        disabled_optimizers=_DISABLED_OPTIMIZERS,
        enable_fallback=0,  # a fallback prints, and tries the same thing again
    )
    return session, kernels


def _session_options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors reach the caller as ours
    # A pattern is kept for every shape ever seen; prefill chunks come in many.
    options.enable_mem_pattern = False
    for key, value in _CONFIG.items():
        options.add_session_config_entry(key, value)
    return options


def _say_where_it_lies(options: Any, package: Package, variant: Variant, role: GraphRole) -> None:
    """Opened from bytes, so that external data may lie anywhere below the package's root. What was
    compiled ahead names its binary from where it lies itself."""
    if variant.compiled is None:
        options.add_session_config_entry(EXTERNAL_DATA, str(package.root))
    else:
        graph = package.path(variant.compiled.graphs[role].graph)
        options.add_session_config_entry("ep.context_file_path", str(graph))


def _shrinking_run_options(ort: Any) -> object:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def check_interface(session: OrtSession, variant: Variant, role: GraphRole) -> None:
    inputs = [*TOKEN_INPUTS, *(spec.input_name for spec in variant.states)]
    outputs = ["logits", *(spec.output_name for spec in variant.states)]
    for what, found, required in (
        ("inputs", [arg.name for arg in session.get_inputs()], inputs),
        ("outputs", [arg.name for arg in session.get_outputs()], outputs),
    ):
        if set(found) != set(required):
            odd = sorted(set(found) ^ set(required))
            raise PackageError(
                f"{variant.graphs[role]}: its {what} are not those of the manifest's states; "
                f"these are in one only: {', '.join(odd[:6])}"
            )


def fingerprint_of(graphs: Sequence[bytes], layout: StateLayout) -> str:
    """A graph names its weights by content, so its bytes stand for the model."""
    return hashlib.sha256(b"".join([*graphs, repr(layout).encode()])).hexdigest()
