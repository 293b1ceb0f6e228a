"""A decoder on the meta device becomes the canonical graph: dynamic, states named, no weights."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import onnx_ir as ir
import torch
from onnxscript import opset23
from torch import Tensor

from edgewright.artifacts.states import StateSpec
from edgewright.custom_ops.onnx_translation import translation_table
from edgewright.export.graph import Graph
from edgewright.model.config import ModelConfig
from edgewright.model.decoder import Decoder

OPSET = 23

# Sizes of the example call. None is 0 or 1, which torch would take for constants, and no two
# dimensions share one, so that a mix-up between them cannot pass unseen.
_EXAMPLE = {"batch": 2, "seq": 3, "wanted": 5, "capacity": 7}


def capture(decoder: Decoder) -> torch.export.ExportedProgram:
    """torch's own graph of one call, with the batch, sequence and capacity left open."""
    layout = decoder.layout
    dims = {name: torch.export.Dim(name, min=1, max=2**31) for name in _EXAMPLE}
    states = [_meta(*_state_sizes(spec), dtype=_torch_dtype(spec)) for spec in layout]
    arguments = (
        _meta(_EXAMPLE["batch"], _EXAMPLE["seq"]),
        _meta(_EXAMPLE["batch"]),
        _meta(_EXAMPLE["batch"]),
        _meta(_EXAMPLE["batch"], _EXAMPLE["wanted"]),
        states,
    )
    shapes = (
        {0: dims["batch"], 1: dims["seq"]},
        {0: dims["batch"]},
        {0: dims["batch"]},
        {0: dims["batch"], 1: dims["wanted"]},
        [
            {axis: dims[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)}
            for spec in layout
        ],
    )
    with torch.no_grad(), _quiet():
        return torch.export.export(decoder, arguments, dynamic_shapes=shapes, strict=False)


def trace(decoder: Decoder) -> Graph:
    """The caller's own, to be changed."""
    translated = _translated(_Traced.of(decoder))
    graph = Graph(translated.model.clone(), decoder.layout)
    _merge_shared(graph.model, _program_of(translated))
    _name_boundary(graph)
    return graph


@dataclass(frozen=True)
class _Traced:
    """A decoder, equal to every other whose graph is the same."""

    config: ModelConfig
    tensors: tuple[tuple[str, torch.Size, torch.dtype], ...]
    decoder: Decoder = field(compare=False)

    @classmethod
    def of(cls, decoder: Decoder) -> _Traced:
        held = (*decoder.named_parameters(), *decoder.named_buffers())
        return cls(decoder.config, tuple((name, t.shape, t.dtype) for name, t in held), decoder)


@lru_cache(maxsize=1)
def _translated(traced: _Traced) -> torch.onnx.ONNXProgram:
    """Tracing takes seconds, and who exports or validates a model asks for it more than once."""
    return _translate(capture(traced.decoder))


def first_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """A parameter that several layers share has a name in each of them: each → the first."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(held), name) for name, held in program.state_dict.items()}


def _merge_shared(model: ir.Model, program: torch.export.ExportedProgram) -> None:
    initializers = model.graph.initializers
    for name, kept in first_names(program).items():
        if kept == name or name not in initializers:
            continue
        value = initializers.pop(name)
        if kept in initializers:
            ir.convenience.replace_all_uses_with(value, initializers[kept])
        else:
            value.name = kept
            initializers[kept] = value


def capture_as_exported(decoder: Decoder) -> torch.export.ExportedProgram:
    """The same in the ops, and with the names, that the ONNX graph is made from."""
    return _program_of(_translated(_Traced.of(decoder)))


def _program_of(translated: torch.onnx.ONNXProgram) -> torch.export.ExportedProgram:
    program = translated.exported_program
    assert program is not None
    return program


def _translate(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=dict([*translation_table().items(), *PLAIN_OPERATORS.items()]),
            optimize=False,
            verbose=False,
        )
    if exported is None:
        raise AssertionError("torch.onnx.export returned no program")
    return exported


def _softplus(x, beta=1.0, threshold=20.0):  # type: ignore[no-untyped-def]
    """max(x, 0) + log1p(exp(-|x|)). ONNX Runtime's own operator goes number by number, and loses a
    small step beside the one that it adds. Here log(w) u / (w - 1), with w = 1 + u as it was
    rounded, gives back what the rounding took. Beyond torch's threshold both give x."""
    assert beta == 1.0 and threshold == 20.0
    small = opset23.Exp(opset23.Neg(opset23.Abs(x)))
    rounded = opset23.Add(small, 1.0)
    kept = opset23.Max(opset23.Sub(rounded, 1.0), 1e-30)
    return opset23.Add(opset23.Relu(x), opset23.Mul(opset23.Log(rounded), opset23.Div(small, kept)))


# torch's operators that its own exporter writes in a slower way.
PLAIN_OPERATORS = {torch.ops.aten.softplus.default: _softplus}


def _meta(*sizes: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def _state_sizes(spec: StateSpec) -> tuple[int, ...]:
    return spec.resolve(_EXAMPLE["batch"], _EXAMPLE["capacity"])


def _torch_dtype(spec: StateSpec) -> torch.dtype:
    return {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}[spec.dtype]


def _name_boundary(graph: Graph) -> None:
    """Inputs, outputs and the dimensions of all values get the contract's names."""
    model_graph = graph.model.graph
    shapes: dict[str, Sequence[str | int]] = {
        "input_ids": ("batch", "seq"),
        "start": ("batch",),
        "length": ("batch",),
        "logit_index": ("batch", "wanted"),
        **{spec.input_name: spec.shape for spec in graph.layout},
    }
    names: dict[str, str | int] = {}  # by torch's own, which differ from run to run
    for value, name in zip(model_graph.inputs, graph.input_names, strict=True):
        if value.shape is not None:
            names |= {str(d): n for d, n in zip(value.shape, shapes[name], strict=True)}
        value.name, value.shape = name, ir.Shape(shapes[name])
    for node in model_graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape(
                    [d if isinstance(d, int) else names.get(str(d), d) for d in value.shape]
                )
    for value, name in zip(model_graph.outputs, graph.output_names, strict=True):
        value.name = name
    logits = model_graph.outputs[0]
    vocabulary = logits.shape[2] if logits.shape is not None else None
    logits.shape = ir.Shape(("batch", "wanted", vocabulary))
    for spec, value in zip(graph.layout, model_graph.outputs[1:], strict=True):
        value.shape = ir.Shape(spec.shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter talks on stdout, in warnings and in logs; its errors still raise."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
