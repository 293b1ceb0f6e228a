"""A checkpoint directory in, a package out, and no weight ever whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from edgewright.artifacts import (
    Manifest,
    ModelInfo,
    Package,
    PackageWriter,
    Provenance,
    StaticSizes,
    Variant,
)
from edgewright.artifacts.manifest import GraphRole
from edgewright.custom_ops.compiler import Library, build
from edgewright.custom_ops.onnx_functions import attach_functions
from edgewright.export.generation import read_generation
from edgewright.export.graph import Graph
from edgewright.export.options import ExportOptions
from edgewright.export.packing import pack_graph
from edgewright.export.passes import simplify
from edgewright.export.providers import Provider
from edgewright.export.quantize.activation_rows import activation_rows
from edgewright.export.quantize.imported import ImportedGroup, imported_groups
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.plan import WeightGroup, plan_of
from edgewright.export.quantize.quantize import PackedGroup, Quantized, quantize_model
from edgewright.export.state_order import prove_state_order
from edgewright.export.static import StaticGraphs
from edgewright.export.stored import Stored
from edgewright.export.tokenizer import write_tokenizer
from edgewright.export.trace import trace
from edgewright.export.weights import (
    WrittenWeights,
    check_small,
    inline_small,
    large_bytes,
    write_large,
)
from edgewright.model.loading import LazyModel, open_model

Progress = Callable[[str, int, int], None]  # stage, done, total
Warn = Callable[[str], None]
Groups = Mapping[str, PackedGroup] | Mapping[str, ImportedGroup]

_VERSIONED = ("edgewright", "torch", "onnx", "onnxscript", "onnx-ir")


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    providers: Sequence[str] = ("cpu",),
    bits: float | None = None,
    *,
    method: str = "auto",
    text: str | Path | None = None,
    tokens: int | None = None,
    block: int = 128,
    outliers: float = 0.005,
    seed: int = 0,
    resume: str | Path | None = None,
    targets: Sequence[str] | None = None,
    cache_dtype: str = "float32",
    allow_fallback: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Package:
    """Write a package of `checkpoint` at `out`, which must not exist yet.

    `bits` is the mean over all parameters as they are stored, everything included; None keeps the
    checkpoint's own values. `method` and what follows it say how to get there: `text` is a file, a
    directory or "stdlib" to calibrate on, as providers that compute in integers do too; `resume` is
    the folder where work that was interrupted goes on. `targets` are the machines to compile the op
    library for: this one when None, none when empty. A node that a provider does not take is an
    error, unless `allow_fallback` leaves it to the processor. `progress(stage, done, total)` and
    `warn(message)` are told what happens on the way.
    """
    quantize = None
    if bits is not None:
        quantize = QuantizeOptions.check(
            bits, method, block, outliers, seed, text=text, tokens=tokens, resume=resume
        )
    calibration = QuantizeOptions.check(16, seed=seed, text=text, tokens=tokens)
    options = ExportOptions.check(
        providers, targets, cache_dtype, quantize, calibration, allow_fallback
    )
    with PackageWriter(out) as writer, ThreadPoolExecutor(1) as compiling:
        model = open_model(checkpoint, cache_dtype=options.cache_dtype)
        libraries = [compiling.submit(build, target) for target in options.targets]
        tell, caution = progress or (lambda *_: None), warn or (lambda _: None)
        return _write_package(model, options, libraries, writer, tell, caution)


def _write_package(
    model: LazyModel,
    options: ExportOptions,
    libraries: Sequence[Future[Library]],
    writer: PackageWriter,
    tell: Progress,
    warn: Warn,
) -> Package:
    generation = read_generation(model.checkpoint)
    tell("tracing", 0, 1)
    graph = traced_graph(model)
    plan = plan_of(graph.model.graph, model)
    quantized = None
    groups: Groups
    if options.quantize is not None:
        quantized = quantize_model(model, plan, options.quantize, tell, warn)
        groups = quantized.groups
    else:
        groups = imported = imported_groups(model, plan)
        plan = tuple(each.group for each in imported.values())
    stored = _store(model, graph, plan, groups, writer, tell, warn)
    tokenizer = write_tokenizer(model.checkpoint, writer, warn)
    tell("compiling kernels", 0, 1)
    paths = _write_libraries(libraries, writer)
    rows = activation_rows(model, options.calibration, tell)
    static = StaticGraphs(stored, writer, rows, tell)
    variants = tuple(
        _write_variant(
            stored,
            provider,
            paths,
            model.config.max_context,
            writer,
            static,
            allow_fallback=options.allow_fallback,
        )
        for provider in options.providers
    )
    package = writer.finish(
        Manifest(
            model=_describe(model, variants[0]),
            generation=generation,
            tokenizer=tokenizer,
            variants=variants,
            provenance=_provenance(model, options, quantized),
        )
    )
    if quantized is not None:
        quantized.discard()
    return package


def canonical_graph(model: LazyModel) -> Graph:
    """The traced graph with small constants in it, simplified, its ops given bodies, and proved."""
    graph = traced_graph(model)
    finish_graph(graph)
    return graph


def traced_graph(model: LazyModel) -> Graph:
    graph = trace(model.decoder)
    inline_small(graph.model, model.weights)
    simplify(graph.model)
    return graph


def finish_graph(graph: Graph) -> None:
    attach_functions(graph.model)
    prove_state_order(graph)


def _store(
    model: LazyModel,
    graph: Graph,
    plan: Sequence[WeightGroup],
    groups: Groups,
    writer: PackageWriter,
    tell: Progress,
    warn: Warn,
) -> Stored:
    """Quantised weights in the place of the checkpoint's; what is not in the plan stays."""
    blobs = {key: writer.add_blob(group.pieces()) for key, group in groups.items()}
    packed = pack_graph(graph.model, plan, blobs) if blobs else {}
    planned = {name for group in plan if group.key in groups for name in group.names}
    widths = sorted({bits for group in groups.values() for bits in group.widths})
    kept = _write_weights(model, graph, writer, tell, warn)
    finish_graph(graph)
    return Stored(
        graph=graph,
        parameters=model.parameter_count,
        packed=packed,
        packed_dtypes=tuple(f"int{bits}" for bits in widths),
        kept=kept.blobs,
        kept_bytes=sum(t.nbytes for name, t in model.parameters.items() if name not in planned),
        kept_dtypes=tuple(
            sorted({model.weights[name].dtype for name in model.matrices() if name not in planned})
        ),
    )


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
    stored: Stored,
    provider: Provider,
    libraries: Mapping[str, str],
    max_context: int,
    writer: PackageWriter,
    static: StaticGraphs,
    *,
    allow_fallback: bool,
) -> Variant:
    lowered: Mapping[GraphRole, Stored] = {"step": stored}
    shapes = provider.static
    if shapes is not None:
        ops = {node.op_type for node in stored.graph.model.graph}
        shapes = shapes.within(max_context, ops)
        lowered = static.of(shapes)
    elif provider.lower is not None:
        lowered = {"step": provider.lower(stored, writer)}
    foreign = {role: provider.foreign_nodes(each.graph.model) for role, each in lowered.items()}
    if not allow_fallback:
        provider.refuse([node for nodes in foreign.values() for node in nodes])
    graphs: dict[GraphRole, str] = {}
    for role, each in lowered.items():
        model = each.graph.model
        model.ir_version = provider.ir_version
        file = "model" if role == "step" else role
        graphs[role] = f"variants/{provider.variant_name}/{file}.onnx"
        writer.add_bytes(graphs[role], ir.serde.serialize_model(model).SerializeToString())
    (one, *_) = lowered.values()
    return Variant(
        name=provider.variant_name,
        provider=provider.name,
        graphs=graphs,
        opset=one.graph.model.opset_imports[""],
        ir_version=provider.ir_version,
        onnxruntime_min=provider.onnxruntime_min,
        libraries=libraries if provider.native_ops else {},
        weights=one.paths,
        states=one.graph.layout,
        bits_per_weight=one.bits_per_weight,
        weight_dtypes=one.dtypes,
        compute_dtype="float32" if shapes is None else shapes.compute_dtype,
        static=None if shapes is None else StaticSizes(shapes.chunk, shapes.capacity),
        notes=provider.notes,
        fallback={role: tuple(nodes) for role, nodes in foreign.items() if nodes},
    )


def _describe(model: LazyModel, first: Variant) -> ModelInfo:
    config = model.config
    return ModelInfo(
        architecture=config.architecture,
        parameters=model.parameter_count,
        bits_per_weight=first.bits_per_weight,
        weight_dtypes=first.weight_dtypes,
        vocab_size=config.vocab_size,
        layers=len(config.layers),
        hidden_size=config.hidden_size,
        max_context=config.max_context,
    )


def _provenance(
    model: LazyModel, options: ExportOptions, quantized: Quantized | None
) -> Provenance:
    asked = options.as_provenance()
    if quantized is not None:
        asked |= {"chosen_method": quantized.method, "text_tokens": quantized.tokens}
    return Provenance(
        checkpoint=model.checkpoint.path.resolve().name,
        checkpoint_sha256=model.checkpoint.identity.removeprefix("sha256:"),
        versions={name: version(name) for name in _VERSIONED},
        options=asked,
    )
