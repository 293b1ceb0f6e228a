"""Each op leaves torch.export as one node of our domain, and runs with the library and without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from edgewright.custom_ops import DOMAIN, OPS, torch_ops
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.onnx_functions import attach_functions
from edgewright.custom_ops.onnx_translation import translation_table

Attribute = int | float | str


@dataclass
class Case:
    """`feeds` have a batch and, at dimension 1, a sequence; both stay symbolic."""

    op: str
    feeds: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    given: dict[str, Attribute]
    expected: dict[str, Attribute]


def cases() -> list[Case]:
    torch.manual_seed(0)
    experts, inner, width = 4, 6, 8
    gate, up = torch.randn(experts, inner, width), torch.randn(experts, inner, width)
    down = torch.randn(experts, width, inner)
    index = torch.randint(0, experts, (2, 3, 2))
    routed = (torch.randn(2, 3, width), index, torch.rand(2, 3, 2))
    biases = (torch.randn(1, 1), torch.randn(experts, inner), torch.randn(experts, width))
    return [
        Case("BlockMatMul", (torch.randn(2, 3, 7),), (torch.randn(5, 7).bfloat16(),), {}, {}),
        Case(
            "RoutedExperts",
            routed,
            (gate.half(), up.half(), down.half(), *biases),
            {"activation": "silu"},
            {"activation": "silu", "alpha": 1.702, "limit": 7.0},
        ),
        Case(
            "RoutedExperts",
            routed,
            (gate, up, down, *biases),
            {"activation": "swiglu_clamped", "alpha": 1.5, "limit": 2.0},
            {"activation": "swiglu_clamped", "alpha": 1.5, "limit": 2.0},
        ),
    ]


class OneOp(torch.nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.call = getattr(torch_ops, OPS[case.op].function)
        self.given = case.given
        self.weights = torch.nn.ParameterList(
            [torch.nn.Parameter(weight, requires_grad=False) for weight in case.weights]
        )

    def forward(self, *feeds: Tensor) -> Tensor:
        result: Tensor = self.call(*feeds, *self.weights, **self.given)
        return result


def export(case: Case) -> ir.Model:
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    program = torch.export.export(
        OneOp(case),
        case.feeds,
        dynamic_shapes={"feeds": tuple(sizes for _ in case.feeds)},
        strict=False,
    )
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=23,
        custom_translation_table=translation_table(),
        optimize=False,
        verbose=False,
    )
    assert exported is not None
    return exported.model


def run(model: ir.Model, feeds: tuple[Tensor, ...], library: Library | None) -> np.ndarray:
    options = ort.SessionOptions()
    if library is not None:
        options.register_custom_ops_library(str(library.path))
    serialized = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    arrays = [feed.numpy() for feed in feeds]
    result: np.ndarray = session.run(None, dict(zip(names, arrays, strict=True)))[0]
    return result


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.op} {c.given}")
def test_exports_to_one_node_that_runs_either_way(case: Case, library: Library) -> None:
    model = export(case)
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    assert [node.op_type for node in nodes] == [case.op]
    assert {name: attr.value for name, attr in nodes[0].attributes.items()} == case.expected
    assert len(model.graph) == 1
    longer = tuple(torch.cat([feed, feed], dim=1) for feed in case.feeds)
    expected = OneOp(case)(*longer).numpy()
    tolerance = 1e-5 * np.abs(expected).max()
    # Without the body only the kernel can have run; without the library, only the body.
    np.testing.assert_allclose(run(model, longer, library), expected, rtol=0, atol=tolerance)
    assert attach_functions(model)
    assert not attach_functions(model)
    np.testing.assert_allclose(run(model, longer, None), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(run(model, longer, library), expected, rtol=0, atol=tolerance)


def test_gradients_flow_outside_of_export() -> None:
    weight = torch.randn(5, 7, requires_grad=True)
    torch_ops.block_matmul(torch.randn(3, 7), weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
