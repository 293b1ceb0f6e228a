"""Specs and references go in; torch callables come out, traceable by torch.export.

While exporting, a call becomes one `edgewright::<function>` node; otherwise it is the reference
itself, so that gradients flow through it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from edgewright.custom_ops import OPS, OpSpec

NAMESPACE = "edgewright"
Result = Tensor | tuple[Tensor, ...]
Attribute = int | float | str

_TORCH_TYPES = {"int": "int", "float": "float", "string": "str"}


class TorchOp(Protocol):
    def __call__(self, *tensors: Tensor, **attributes: Attribute) -> Result: ...


def torch_schema(spec: OpSpec) -> str:
    """The op's signature in torch's own schema language."""
    parts = [f"Tensor {tensor.name}" for tensor in spec.inputs]
    if spec.attributes:
        parts.append("*")
    for attribute in spec.attributes:
        part = f"{_TORCH_TYPES[attribute.type]} {attribute.name}"
        if isinstance(attribute.default, str):
            part += f'="{attribute.default}"'
        elif attribute.default is not None:
            part += f"={attribute.default}"
        parts.append(part)
    outputs = ", ".join("Tensor" for _ in spec.outputs)
    return f"({', '.join(parts)}) -> {outputs if len(spec.outputs) == 1 else f'({outputs})'}"


def overload(spec: OpSpec) -> torch._ops.OpOverload:
    """What an exported program's nodes point to."""
    packet = getattr(getattr(torch.ops, NAMESPACE), spec.function)
    found: torch._ops.OpOverload = packet.default
    return found


def _define(spec: OpSpec) -> TorchOp:
    module = import_module(f"edgewright.custom_ops.{spec.function}.reference")
    name = f"{NAMESPACE}::{spec.function}"
    torch.library.define(name, torch_schema(spec))
    torch.library.impl(name, "CompositeExplicitAutograd")(_with_defaults(spec, module.reference))
    torch.library.register_fake(name)(_with_defaults(spec, module.fake))
    return _dispatcher(spec, module.reference)


def _with_defaults(spec: OpSpec, function: Callable[..., Result]) -> TorchOp:
    # torch leaves out an attribute that equals its default, and references take them all.
    defaults = {a.name: a.default for a in spec.attributes if a.default is not None}

    def call(*tensors: Tensor, **attributes: Attribute) -> Result:
        return function(*tensors, **{**defaults, **attributes})

    return call


def _dispatcher(spec: OpSpec, reference: Callable[..., Result]) -> TorchOp:
    plain = _with_defaults(spec, reference)
    names = tuple(tensor.name for tensor in spec.inputs)

    def call(*tensors: Tensor, **arguments: Tensor | Attribute) -> Result:
        tensors += tuple(arguments.pop(name) for name in names[len(tensors) :])  # type: ignore[misc]
        if torch.compiler.is_exporting():
            result: Result = overload(spec)(*tensors, **arguments)
            return result
        return plain(*tensors, **arguments)  # type: ignore[arg-type]

    call.__name__ = call.__qualname__ = spec.function
    return call


_CALLABLES = {spec.function: _define(spec) for spec in OPS.values()}


def __getattr__(name: str) -> TorchOp:
    """`from edgewright.custom_ops.torch_ops import block_matmul`: one callable for each op."""
    try:
        return _CALLABLES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
