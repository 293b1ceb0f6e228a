"""A checkpoint directory in, a package out, and no weight ever whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from edgewright.artifacts import (
    Manifest,
    ModelInfo,
    Package,
    PackageWriter,
    Provenance,
    Variant,
)
from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.compiler import TARGETS, Library, build, buildable_host
from edgewright.custom_ops.onnx_functions import attach_functions
from edgewright.export.generation import read_generation
from edgewright.export.graph import Graph
from edgewright.export.passes import simplify
from edgewright.export.providers import Provider, find_provider
from edgewright.export.state_order import prove_state_order
from edgewright.export.tokenizer import write_tokenizer
from edgewright.export.trace import trace
from edgewright.export.weights import (
    WrittenWeights,
    check_small,
    inline_small,
    large_bytes,
    write_large,
)
from edgewright.model.config import CacheDtype
from edgewright.model.loading import LazyModel, open_model

Progress = Callable[[str, int, int], None]  # stage, done, total
Warn = Callable[[str], None]

_VERSIONED = ("edgewright", "torch", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True)
class ExportOptions:
    providers: tuple[Provider, ...]
    targets: tuple[str, ...]
    cache_dtype: CacheDtype

    @staticmethod
    def check(
        providers: Sequence[str], bits: float | None, targets: Sequence[str] | None, cache: str
    ) -> ExportOptions:
        if not providers:
            raise ExportError("no provider was named; cpu is one")
        if len(set(providers)) != len(providers):
            raise ExportError(f"a provider is named twice: {', '.join(providers)}")
        if bits is not None:
            raise ExportError(
                f"bits={bits} was asked for; this version keeps the checkpoint's own values"
                " (bits=None)"
            )
        for target in targets or ():
            if target not in TARGETS:
                raise ExportError(f"no target {target!r}; choose from {', '.join(TARGETS)}")
        cache_dtype = next((name for name in get_args(CacheDtype) if name == cache), None)
        if cache_dtype is None:
            known = ", ".join(get_args(CacheDtype))
            raise ExportError(f"cache dtype {cache!r} is not known; choose from {known}")
        found = tuple(find_provider(name) for name in providers)
        chosen = (buildable_host(),) if targets is None else tuple(dict.fromkeys(targets))
        return ExportOptions(found, chosen, cache_dtype)

    def as_provenance(self) -> Mapping[str, str | tuple[str, ...] | None]:
        return {
            "providers": tuple(provider.name for provider in self.providers),
            "bits": None,
            "targets": self.targets,
            "cache_dtype": self.cache_dtype,
        }


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    providers: Sequence[str] = ("cpu",),
    bits: float | None = None,
    *,
    targets: Sequence[str] | None = None,
    cache_dtype: str = "float32",
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Package:
    """Write a package of `checkpoint` at `out`, which must not exist yet.

    `targets` are the machines to compile the op library for: this one when None, none when empty.
    `progress(stage, done, total)` and `warn(message)` are told what happens on the way.
    """
    options = ExportOptions.check(providers, bits, targets, cache_dtype)
    tell, caution = progress or (lambda *_: None), warn or (lambda _: None)
    with PackageWriter(out) as writer, ThreadPoolExecutor(1) as compiling:
        model = open_model(checkpoint, cache_dtype=options.cache_dtype)
        generation = read_generation(model.checkpoint)
        libraries = [compiling.submit(build, target) for target in options.targets]
        tell("tracing", 0, 1)
        graph = canonical_graph(model)
        weights = _write_weights(model, graph, writer, tell, caution)
        tokenizer = write_tokenizer(model.checkpoint, writer, caution)
        tell("compiling kernels", 0, 1)
        paths = _write_libraries(libraries, writer)
        variants = tuple(
            _write_variant(graph, provider, weights, paths, model, writer)
            for provider in options.providers
        )
        return writer.finish(
            Manifest(
                model=_describe(model),
                generation=generation,
                tokenizer=tokenizer,
                variants=variants,
                provenance=_provenance(model, options),
            )
        )


def canonical_graph(model: LazyModel) -> Graph:
    """The traced graph with small constants in it, simplified, its ops given bodies, and proved."""
    graph = trace(model.decoder)
    inline_small(graph.model, model.weights)
    simplify(graph.model)
    attach_functions(graph.model)
    prove_state_order(graph)
    return graph


def _write_weights(
    model: LazyModel, graph: Graph, writer: PackageWriter, tell: Progress, warn: Warn
) -> WrittenWeights:
    check_small(graph.model, model.parameters, warn)
    total, done = large_bytes(graph.model), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell("writing weights", done, total)

    return write_large(graph.model, model.weights, writer, advance, warn)


def _write_libraries(
    libraries: Sequence[Future[Library]], writer: PackageWriter
) -> Mapping[str, str]:
    paths = {}
    for future in libraries:
        library = future.result()
        paths[library.target] = f"lib/{library.target}/{library.path.name}"
        writer.add_bytes(paths[library.target], library.data)
    return paths


def _write_variant(
    graph: Graph,
    provider: Provider,
    weights: WrittenWeights,
    libraries: Mapping[str, str],
    model: LazyModel,
    writer: PackageWriter,
) -> Variant:
    provider.refuse_foreign_nodes(graph.model)
    graph.model.ir_version = provider.ir_version
    path = f"variants/{provider.name}/model.onnx"
    writer.add_bytes(path, ir.serde.serialize_model(graph.model).SerializeToString())
    return Variant(
        name=provider.name,
        provider=provider.name,
        graphs={"step": path},
        opset=graph.model.opset_imports[""],
        ir_version=provider.ir_version,
        onnxruntime_min=provider.onnxruntime_min,
        libraries=libraries if provider.native_ops else {},
        weights=weights.paths,
        states=graph.layout,
        weight_dtypes=model.weight_dtypes,
        compute_dtype="float32",
    )


def _describe(model: LazyModel) -> ModelInfo:
    config = model.config
    return ModelInfo(
        architecture=config.architecture,
        parameters=model.parameter_count,
        bits_per_weight=8 * model.stored_bytes / model.parameter_count,
        weight_dtypes=model.weight_dtypes,
        vocab_size=config.vocab_size,
        layers=len(config.layers),
        hidden_size=config.hidden_size,
        max_context=config.max_context,
    )


def _provenance(model: LazyModel, options: ExportOptions) -> Provenance:
    return Provenance(
        checkpoint=model.checkpoint.path.resolve().name,
        checkpoint_sha256=model.checkpoint.identity.removeprefix("sha256:"),
        versions={name: version(name) for name in _VERSIONED},
        options=options.as_provenance(),
    )
