"""Specs go in; torch.onnx.export's `custom_translation_table` for our ops comes out.

The nodes have a schema and no body: the exporter's version conversion would inline one. Bodies are
attached afterwards (`onnx_functions.attach_functions`).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Op, Opset

from edgewright.custom_ops import DOMAIN, OPS, VERSION, OpSpec
from edgewright.custom_ops.spec import TensorSpec
from edgewright.custom_ops.torch_ops import overload

Values = ir.Value | tuple[ir.Value, ...]
_ONNX_NAMES = {"float32": "float"}


def translation_table() -> dict[torch._ops.OpOverload, Callable[..., Values]]:
    return {overload(spec): _translator(spec) for spec in OPS.values()}


def schema_of(spec: OpSpec) -> onnx.defs.OpSchema:
    """The op as ONNX describes ops."""
    formal = onnx.defs.OpSchema.FormalParameter
    variables = {name: [_type_text(d) for d in dtypes] for name, dtypes in spec.types.items()}
    kinds = onnx.defs.OpSchema.AttrType

    def parameters(tensors: tuple[TensorSpec, ...]) -> list[onnx.defs.OpSchema.FormalParameter]:
        types = [t.type if t.type in variables else _type_text(t.type) for t in tensors]
        return [formal(t.name, type_) for t, type_ in zip(tensors, types, strict=True)]

    return onnx.defs.OpSchema(
        spec.name,
        DOMAIN,
        VERSION,
        inputs=parameters(spec.inputs),
        outputs=parameters(spec.outputs),
        type_constraints=[(name, allowed, "") for name, allowed in variables.items()],
        attributes=[
            onnx.defs.OpSchema.Attribute(a.name, getattr(kinds, a.type.upper()), required=True)
            for a in spec.attributes
        ],
    )


def _type_text(dtype: str) -> str:
    return f"tensor({_ONNX_NAMES.get(dtype, dtype)})"


def _translator(spec: OpSpec) -> Callable[..., Values]:
    op = Op(Opset(DOMAIN, VERSION), spec.name, schema_of(spec))
    defaults = {a.name: a.default for a in spec.attributes if a.default is not None}
    floats = {a.name for a in spec.attributes if a.type == "float"}

    def translate(*tensors, **attributes):  # type: ignore[no-untyped-def]
        # Unannotated, or the exporter would match the signature itself. Every attribute is written
        # out, because a function body has no defaults of its own to fall back on.
        given = {**defaults, **attributes}
        return op(*tensors, **{k: float(v) if k in floats else v for k, v in given.items()})

    return translate
