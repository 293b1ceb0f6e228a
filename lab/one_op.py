"""Models of one op, with inputs and what numpy says of them: what shows that an environment works,
that it computes in the type it is given, and that it refuses what it has no place for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lab.case import Array, Arrays

_IR, _OPSET = 10, 21
_BLOCK = 32
EXTERNAL = "weights.bin"


@dataclass(frozen=True)
class OneOp:
    """`weights` become initialisers; `is_processors_own` where no other provider has the op."""

    op: str
    inputs: Arrays
    weights: Arrays
    wanted: Array
    domain: str = ""
    attributes: Mapping[str, int] = field(default_factory=dict)
    is_processors_own: bool = False
    is_external: bool = False

    def write(self, path: Path) -> None:
        node = helper.make_node(self.op, [*self.inputs, *self.weights], ["y"], domain=self.domain)
        for name, number in self.attributes.items():
            node.attribute.append(helper.make_attribute(name, number))
        graph = helper.make_graph(
            [node],
            self.op,
            [_value(name, array) for name, array in self.inputs.items()],
            [_value("y", self.wanted)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
        onnx.save(
            model, path, save_as_external_data=self.is_external, location=EXTERNAL, size_threshold=0
        )


def matmul(dtype: np.dtype[np.generic]) -> OneOp:
    x, w = _noise(dtype, (2, 8, 64)), _noise(dtype, (64, 48))
    wanted = (x.astype(np.float64) @ w.astype(np.float64)).astype(dtype)
    return OneOp("MatMul", {"x": x}, {"w": w}, wanted, is_external=True)


def softmax(dtype: np.dtype[np.generic]) -> OneOp:
    x = _noise(dtype, (2, 8, 64))
    powers = np.exp(x.astype(np.float64))
    return OneOp("Softmax", {"x": x}, {}, (powers / powers.sum(-1, keepdims=True)).astype(dtype))


def matmul_nbits(dtype: np.dtype[np.generic]) -> OneOp:
    """Four bits a weight, two of them in a byte and the first one low; eight is zero."""
    columns, depth = 48, 2 * _BLOCK
    x, wide = _noise(dtype, (1, 5, depth)), _noise(np.dtype(np.float64), (columns * 2,))
    scales = ((np.abs(wide) / 16 + 1) / 8).astype(dtype)
    packed = np.random.default_rng(1).integers(0, 256, (columns, 2, _BLOCK // 2), np.uint8)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(columns, 2, _BLOCK).astype(np.float64)
    weight = (codes - 8) * scales.astype(np.float64).reshape(columns, 2, 1)
    wanted = (x.astype(np.float64) @ weight.reshape(columns, depth).T).astype(dtype)
    attributes = {"K": depth, "N": columns, "bits": 4, "block_size": _BLOCK}
    weights = {"w": packed, "scales": scales}
    return OneOp("MatMulNBits", {"x": x}, weights, wanted, "com.microsoft", attributes)


def determinant(dtype: np.dtype[np.generic]) -> OneOp:
    x = _noise(np.dtype(np.float32), (2, 3, 3))
    return OneOp("Det", {"x": x}, {}, np.linalg.det(x), is_processors_own=True)


CASES: tuple[Callable[[np.dtype[np.generic]], OneOp], ...] = (
    matmul,
    softmax,
    matmul_nbits,
    determinant,
)


def _noise(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _value(name: str, array: Array) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape)
