"""The static lowerings of BlockMatMul and RoutedExperts against their references."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops import OPS
from edgewright.custom_ops.block_matmul.lower import lower as lower_matmul
from edgewright.custom_ops.routed_experts.lower import StaticExperts
from edgewright.custom_ops.routed_experts.lower import lower as lower_experts
from edgewright.custom_ops.torch_ops import block_matmul, routed_experts

Array = NDArray[Any]
# What a provider without Scan, Loop, If or dynamic shapes takes.
FORBIDDEN = {"Loop", "Scan", "If", "Shape", "NonZero", "Range", "ConstantOfShape"}


def run(function: ir.Function, op: str, inputs: dict[str, Array]) -> Array:
    """The function's nodes as a graph of their own, with static shapes."""
    graph = function.graph
    assert not FORBIDDEN & {node.op_type for node in graph.all_nodes()}
    assert [value.name for value in graph.inputs] == [t.name for t in OPS[op].inputs]
    for value in graph.inputs:
        array = inputs[value.name or ""]
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, inputs)[0]
    return result


def test_block_matmul() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 17)).astype(np.float32)
    weight = rng.standard_normal((5, 17)).astype(np.float32)
    found = run(lower_matmul(3, 5, 17), "BlockMatMul", {"x": x, "weight": weight})
    expected = block_matmul(torch.from_numpy(x), torch.from_numpy(weight))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "activation", ["silu", "gelu", "gelu_tanh", "swiglu_clamped", "relu_squared"]
)
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 7, 8)], ids=["decode", "prefill"])
@pytest.mark.parametrize("shared", [False, True])
def test_routed_experts(activation: str, shape: tuple[int, ...], shared: bool) -> None:
    rng = np.random.default_rng(1)
    experts, choices, width, inner = 5, 2, shape[-1], 6

    def normal(*dims: int) -> Array:
        return (rng.standard_normal(dims) / np.sqrt(dims[-1])).astype(np.float32)

    index = rng.integers(0, experts, (*shape[:-1], choices))
    share = rng.random(index.shape, np.float32)
    matrices = [normal(experts, inner, width), normal(experts, inner, width)]
    matrices.append(normal(experts, width, inner))
    biases = [normal(1, 1) if shared else normal(experts, n) for n in (inner, inner, width)]
    arrays = [normal(*shape), index, share, *matrices, *biases]
    attributes = {"activation": activation, "alpha": 1.3, "limit": 0.4}
    expected = routed_experts(*map(torch.from_numpy, arrays), **attributes)
    node = StaticExperts(
        shape, choices, experts, activation, 1.3, 0.4, shared_biases=(shared, shared, shared)
    )
    assert node.gathers == (shape == (1, 1, 8))
    names = [tensor.name for tensor in OPS["RoutedExperts"].inputs]
    found = run(lower_experts(node), "RoutedExperts", dict(zip(names, arrays, strict=True)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_an_unknown_activation_is_refused() -> None:
    node = StaticExperts((1, 8), 1, 2, "relu", 1.0, 1.0, shared_biases=(True, True, True))
    with pytest.raises(ExportError, match="unknown activation 'relu'"):
        lower_experts(node)
