"""State-space mixers in training: gradients through the references, in both precisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgewright.model.call import Call
from edgewright.model.mixer import Mixer
from edgewright.model.mixers.selective_scan import SelectiveScanSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec

HIDDEN, ROWS, STEPS = 24, 2, 70
SPECS = {
    "mamba": SelectiveScanSpec(inner=36, state=5, rank=3),
    "jamba": SelectiveScanSpec(inner=36, state=5, rank=3, bias=True, norms="weighted"),
    "mamba2": StateSpaceDualSpec(heads=6, head_dim=6, state=7, groups=2, norm_groups=2),
    "falcon_h1": StateSpaceDualSpec(
        heads=6, head_dim=6, state=7, norm_eps=None, scales=(0.5, 0.7, 0.9, 1.1, 1.3)
    ),
    "norm before gate": StateSpaceDualSpec(
        heads=6, head_dim=6, state=7, norm_before_gate=True, step_limit=(0.01, 0.5)
    ),
}


def _mixer(spec: SelectiveScanSpec | StateSpaceDualSpec) -> Mixer:
    draw = torch.Generator().manual_seed(5)
    mixer = spec.build(HIDDEN)
    for name, parameter in mixer.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.5
        parameter.data = -noise.exp() if name == "decay" else scale * noise
    return mixer


def _gradients(mixer: Mixer, precision: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    x = torch.randn(ROWS, STEPS, HIDDEN, generator=torch.Generator().manual_seed(6))
    start, length = torch.zeros(ROWS, dtype=torch.int64), torch.full((ROWS,), STEPS)
    states = [torch.zeros(spec.resolve(ROWS, 0)) for spec in mixer.states("mixer")]
    with torch.autocast("cpu", precision, precision != torch.float32):
        y, after = mixer(x, Call.prepare(x, start, length, []), states)
    assert {state.dtype for state in after} == {torch.float32}
    y.float().square().mean().backward()  # type: ignore[no-untyped-call]
    found = []
    for parameter in mixer.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return y.detach().float(), found


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_learns(name: str) -> None:
    _, gradients = _gradients(_mixer(SPECS[name]), torch.float32)
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", SPECS)
def test_lowered_precision_stays_near(name: str) -> None:
    mixer = _mixer(SPECS[name])
    exact, gradients = _gradients(mixer, torch.float32)
    near, lowered = _gradients(mixer, torch.bfloat16)
    assert (near - exact).square().mean().sqrt() < 0.05 * exact.std()
    for a, b in zip(gradients, lowered, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.97
