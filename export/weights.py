"""Initializers become blobs: each lazy tensor is written once, in pieces, and pointed at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch

from edgewright.artifacts import Blob, PackageWriter
from edgewright.model.lazy import LazyTensor
from edgewright.model.nonfinite import count_nonfinite

_IR_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}

# What is smaller travels inside the graph: norms and constants, not matrices.
_INLINE_BYTES = 16 << 10


@dataclass(frozen=True)
class WrittenWeights:
    """`blobs` by initializer name; a tensor that two readers share is one blob."""

    blobs: Mapping[str, Blob]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(blob.path for blob in self.blobs.values()))


def inline_small(model: ir.Model, weights: Mapping[str, LazyTensor]) -> None:
    """Give each initializer its values, or for a large one its shape and type alone."""
    for name, value in model.graph.initializers.items():
        if name not in weights:
            continue
        tensor = weights[name]
        if tensor.nbytes <= _INLINE_BYTES:
            value.const_value = _in_memory(tensor)
        else:
            value.const_value = ir.LazyTensor(
                _unread(tensor.name),
                dtype=_IR_TYPES[tensor.dtype],
                shape=ir.Shape(tensor.shape),
                name=name,
            )


def write_large(
    model: ir.Model,
    weights: Mapping[str, LazyTensor],
    writer: PackageWriter,
    advance: Callable[[int], None],
    warn: Callable[[str], None],
) -> WrittenWeights:
    """Stream every large initializer into a blob. What is written is the checkpoint's own bytes."""
    blobs: dict[str, Blob] = {}
    for name, value in model.graph.initializers.items():
        if not isinstance(value.const_value, ir.LazyTensor):
            continue
        tensor = weights[name]
        blob = writer.add_blob(_checked(tensor, advance, warn))
        blobs[name] = blob
        value.const_value = ir.ExternalTensor(
            location=blob.path,
            offset=0,
            length=blob.size,
            dtype=_IR_TYPES[tensor.dtype],
            shape=ir.Shape(tensor.shape),
            name=name,
        )
    return WrittenWeights(blobs)


def large_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, ir.LazyTensor))


def check_small(
    model: ir.Model, weights: Mapping[str, LazyTensor], warn: Callable[[str], None]
) -> None:
    for name, value in model.graph.initializers.items():
        if name in weights and not isinstance(value.const_value, ir.LazyTensor):
            for _ in _checked(weights[name], lambda _: None, warn):
                pass


def _checked(
    tensor: LazyTensor, advance: Callable[[int], None], warn: Callable[[str], None]
) -> Iterator[memoryview]:
    bad = 0
    for piece in tensor.pieces():
        bad += count_nonfinite(piece, tensor.dtype)
        size = piece.nbytes
        yield piece
        del piece
        advance(size)
    if bad:
        warn(f"tensor {tensor.name} has {bad} values that are not finite (NaN or infinity)")


def _in_memory(tensor: LazyTensor) -> ir.TensorProtocol:
    values = tensor.read().contiguous()
    if tensor.dtype == "bfloat16":
        raw = values.view(dtype=torch.int16).numpy()
        return ir.Tensor(raw.view(_IR_TYPES["bfloat16"].numpy()), name=tensor.name)
    return ir.Tensor(values.numpy(), name=tensor.name)


def _unread(name: str) -> Callable[[], ir.TensorProtocol]:
    def read() -> ir.TensorProtocol:
        raise AssertionError(f"{name} is written in pieces, never read whole")

    return read
