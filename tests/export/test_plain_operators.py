"""torch's operators that we write for ONNX ourselves, run by ONNX Runtime and held to float64."""

from __future__ import annotations

import onnxruntime as ort
import torch

from edgewright.export.trace import PLAIN_OPERATORS


class Softplus(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(x)


def test_softplus_keeps_the_smallest_steps() -> None:
    ends = torch.tensor([-200.0, -104.0, 0.0, 88.0, 200.0])
    x = torch.cat([torch.linspace(-16, 30, 4001), ends])
    program = torch.onnx.export(
        torch.export.export(Softplus(), (x,)),
        dynamo=True,
        custom_translation_table=dict(PLAIN_OPERATORS),
        optimize=False,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto.SerializeToString()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    expected = torch.nn.functional.softplus(x.double())
    assert torch.equal(found.isfinite(), expected.isfinite())
    error = (found.double() - expected).abs()
    # Near 1e-7, where exp(x) is lost beside one, only the absolute error is small.
    assert (error <= 4 * torch.finfo(torch.float32).eps * expected + 6e-8 * (x < -15)).all()
