"""What an op is called, takes and gives: what its torch, ONNX and C++ sides are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

DOMAIN = "ai.edgewright"
VERSION = 1

Dtype = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8"]
AttributeType = Literal["int", "float", "string"]

# ONNX's TensorProto.DataType, which ONNX Runtime's element types repeat.
ELEMENT_TYPES: Mapping[Dtype, int] = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "float16": 10,
    "bfloat16": 16,
}


@dataclass(frozen=True)
class TensorSpec:
    """`type` is a dtype, or the name of one of the op's type variables."""

    name: str
    type: str


@dataclass(frozen=True)
class AttributeSpec:
    """Without a default the attribute is required."""

    name: str
    type: AttributeType
    default: int | float | str | None = None


@dataclass(frozen=True)
class OpSpec:
    """`function` names the op in torch and is the name of its folder."""

    name: str
    function: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[AttributeSpec, ...] = ()
    types: Mapping[str, tuple[Dtype, ...]] = field(default_factory=dict)
    in_place: tuple[tuple[str, str], ...] = ()  # (input, the output that may take its memory)

    def dtypes(self, tensor: TensorSpec) -> tuple[Dtype, ...]:
        """Every dtype that this input or output may have."""
        if tensor.type in self.types:
            return self.types[tensor.type]
        return tuple(dtype for dtype in ELEMENT_TYPES if dtype == tensor.type)

    def bindings(self) -> tuple[Mapping[str, Dtype], ...]:
        """Every way to give each type variable one dtype."""
        names = tuple(self.types)
        return tuple(
            dict(zip(names, choice, strict=True)) for choice in product(*self.types.values())
        )

    def bound(self, tensor: TensorSpec, binding: Mapping[str, Dtype]) -> Dtype:
        return binding[tensor.type] if tensor.type in binding else self.dtypes(tensor)[0]

    def in_place_indices(self) -> tuple[tuple[int, int], ...]:
        inputs = [tensor.name for tensor in self.inputs]
        outputs = [tensor.name for tensor in self.outputs]
        return tuple((inputs.index(a), outputs.index(b)) for a, b in self.in_place)
