"""The static lowering of LatentAttention against its reference, through ONNX Runtime."""

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
from edgewright.custom_ops.latent_attention import reference as torch_reference
from edgewright.custom_ops.latent_attention.lower import StaticLatentAttention, lower
from tests.custom_ops.cache_values import cached
from tests.custom_ops.static_graph import REFUSED

reference: Callable[..., tuple[torch.Tensor, ...]] = torch_reference.reference
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    node: StaticLatentAttention
    start: tuple[int, ...]
    length: tuple[int, ...]
    dtype: str = "float32"


PLAIN = StaticLatentAttention(2, 8, 24, 3, rank=20, rope=8, nope=10, value=12, scale=0.3)
CASES = {
    "prefill": Case(PLAIN, (0, 3), (8, 8)),
    "padded": Case(PLAIN, (16, 20), (8, 2)),
    "empty row": Case(PLAIN, (5, 9), (0, 3)),
    "window": Case(replace(PLAIN, window=5), (0, 11), (8, 6)),
    "decode": Case(replace(PLAIN, seq=1), (23, 0), (1, 1)),
    "half": Case(PLAIN, (4, 11), (8, 6), "float16"),
    "int8": Case(replace(PLAIN, int8_cache=True, window=9), (4, 11), (8, 6), "int8"),
}


def _arrays(case: Case) -> Arrays:
    node, rng = case.node, np.random.default_rng(0)
    new, held = (node.batch, node.seq), (node.batch, node.capacity)
    heads = node.num_heads
    rows = [rng.standard_normal((*held, size), np.float32) for size in (node.rank, node.rope)]
    up = rng.standard_normal((heads * (node.nope + node.value), node.rank), np.float32)
    return {
        "query": rng.standard_normal((*new, heads * (node.nope + node.rope)), np.float32),
        "latent": rng.standard_normal((*new, node.rank), np.float32),
        "key_rope": rng.standard_normal((*new, node.rope), np.float32),
        "up": (up * node.rank**-0.5).astype(np.float16),
        "cache": np.concatenate([cached(part, case.dtype) for part in rows], -1),
        "table": np.arange(node.batch)[:, None],
        "start": np.array(case.start),
        "length": np.array(case.length),
    }


def _run(function: ir.Function, arrays: Arrays) -> list[NDArray[Any]]:
    for value in function.inputs:
        array = arrays[value.name or ""]
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    types = [ir.DataType.FLOAT, ir.DataType.from_numpy(arrays["cache"].dtype)]
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
    tensors = [torch.from_numpy(arrays[tensor.name]) for tensor in OPS["LatentAttention"].inputs]
    options = {"scale": node.scale, "window": node.window}
    want = reference(*tensors, num_heads=node.num_heads, **options)
    function = lower(node, update)
    assert not REFUSED & {node.op_type for node in function}
    output, stored = _run(function, arrays)
    # Scores are up to 15, sums of some 28 products: that many roundings, and as many again.
    np.testing.assert_allclose(output, want[0].numpy(), rtol=0, atol=64 * np.finfo(np.float32).eps)
    cache = stored
    if update == "delta":
        cache = arrays["cache"].copy()
        for row, (start, length) in enumerate(zip(case.start, case.length, strict=True)):
            cache[row, start : start + length] = stored[row, :length]
    np.testing.assert_array_equal(cache, want[1].numpy())
