"""The static lowering of CachedAttention against its reference, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from edgewright.artifacts.states import Update
from edgewright.custom_ops import OPS
from edgewright.custom_ops.cached_attention import reference as torch_reference
from edgewright.custom_ops.cached_attention.lower import StaticAttention, lower
from tests.custom_ops.cache_values import cached

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    node: StaticAttention
    start: tuple[int, ...]
    length: tuple[int, ...]
    dtype: str = "float32"


PLAIN = StaticAttention(2, 8, 24, 6, 2, 20, 12, 0.3)
CASES = {
    "prefill": Case(PLAIN, (0, 3), (8, 8)),
    "padded": Case(PLAIN, (16, 20), (8, 2)),
    "empty row": Case(PLAIN, (5, 9), (0, 3)),
    "window": Case(replace(PLAIN, window=5), (0, 11), (8, 6)),
    "soft cap": Case(replace(PLAIN, softcap=2.0), (0, 11), (8, 6)),
    "sinks": Case(replace(PLAIN, has_sinks=True, window=7), (0, 11), (8, 6)),
    "decode": Case(replace(PLAIN, seq=1, has_sinks=True), (23, 0), (1, 1)),
    "int8": Case(replace(PLAIN, has_sinks=True, int8_cache=True), (4, 11), (8, 6), "int8"),
    "half": Case(replace(PLAIN, has_sinks=True), (4, 11), (8, 6), "float16"),
}


def _arrays(case: Case) -> Arrays:
    node, rng = case.node, np.random.default_rng(0)
    new, cache = (node.batch, node.seq), (node.batch, node.kv_heads, node.capacity)
    arrays = {
        "query": rng.standard_normal((*new, node.num_heads * node.dim), np.float32),
        "key": rng.standard_normal((*new, node.kv_heads * node.dim), np.float32),
        "value": rng.standard_normal((*new, node.kv_heads * node.v_dim), np.float32),
        "key_cache": cached(rng.standard_normal((*cache, node.dim), np.float32), case.dtype),
        "value_cache": cached(rng.standard_normal((*cache, node.v_dim), np.float32), case.dtype),
        "table": np.arange(node.batch)[:, None],
        "start": np.array(case.start),
        "length": np.array(case.length),
        "sinks": np.array([-np.inf], np.float32),
    }
    if node.has_sinks:
        arrays["sinks"] = rng.standard_normal(node.num_heads, np.float32)
    return arrays


def _run(function: ir.Function, arrays: Arrays) -> list[NDArray[Any]]:
    inputs = []
    for value in function.inputs:
        assert value.name is not None
        array = arrays[value.name]
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        inputs.append(value)
    types = [ir.DataType.FLOAT] + 2 * [ir.DataType.from_numpy(arrays["key_cache"].dtype)]
    for output, dtype in zip(function.outputs, types, strict=True):
        output.type = ir.TensorType(dtype)
    proto = ir.to_proto(ir.Model(function.graph, ir_version=10))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    results: list[NDArray[Any]] = session.run(
        None, {name: array for name, array in arrays.items() if name in names}
    )
    return results


@pytest.mark.parametrize("update", ["in_graph", "delta"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, update: Update) -> None:
    case = CASES[name]
    node, arrays = case.node, _arrays(case)
    tensors = [torch.from_numpy(arrays[tensor.name]) for tensor in OPS["CachedAttention"].inputs]
    options = {"scale": node.scale, "window": node.window, "softcap": node.softcap}
    want = reference(*tensors, num_heads=node.num_heads, **options)
    output, *stored = _run(lower(node, update), arrays)
    np.testing.assert_allclose(output, want[0].numpy(), rtol=0, atol=4e-6)
    for name, got, after in zip(("key_cache", "value_cache"), stored, want[1:], strict=True):
        cache = got
        if update == "delta":
            cache = arrays[name].copy()
            for row, (start, length) in enumerate(zip(case.start, case.length, strict=True)):
                cache[row, :, start : start + length] = got[row, :, :length]
        np.testing.assert_array_equal(cache, after.numpy())


def test_uses_static_ops_alone() -> None:
    refused = {"Shape", "Range", "If", "Loop", "Scan", "Slice", "Trilu", "TensorScatter"}
    for update in ("in_graph", "delta"):
        function = lower(replace(PLAIN, has_sinks=True, window=3, softcap=1.0), update)
        assert not refused & {node.op_type for node in function}
