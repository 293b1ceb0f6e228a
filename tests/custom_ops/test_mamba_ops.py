"""CausalConv and SelectiveScan in the places of transformers' own code: the whole Mamba mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from edgewright.custom_ops.torch_ops import causal_conv, selective_scan

Sizes = tuple[int, ...]


@pytest.fixture(scope="module")
def mixer() -> MambaMixer:
    torch.manual_seed(0)
    config = MambaConfig(
        hidden_size=24, state_size=7, conv_kernel=4, time_step_rank=5, num_hidden_layers=1
    )
    mixer = MambaMixer(config, 0).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.ndim == 2 and parameter is not mixer.A_log:
                parameter.normal_(0, 1.5 * parameter.shape[1] ** -0.5)
        mixer.A_log.copy_(torch.linspace(-4, 3, mixer.A_log.numel()).view_as(mixer.A_log))
        mixer.D.normal_()
        mixer.conv1d.bias.normal_()
    return mixer


def ours(mixer: Any, hidden: Tensor, sizes: Sizes) -> Tensor:
    """In calls of the given sizes, which states alone connect."""
    width, states = mixer.intermediate_size, mixer.ssm_state_size
    conv_state = torch.zeros(len(hidden), 3, width)
    state = torch.zeros(len(hidden), states, width)
    outputs = []
    for part in hidden.split(list(sizes), 1):
        length = torch.full((len(part),), part.shape[1])
        x, gate = mixer.in_proj(part).chunk(2, -1)
        weight = mixer.conv1d.weight[:, 0].T.contiguous()
        x, conv_state = causal_conv(
            x, weight, mixer.conv1d.bias, conv_state, length, activation="silu"
        )
        step, b, c = mixer.x_proj(x).split([mixer.time_step_rank, states, states], -1)
        dt = softplus(mixer.dt_proj(step))
        a = -mixer.A_log.float().exp().T
        y, state = selective_scan(x * dt, dt, a, b, c, state, length)
        outputs.append(mixer.out_proj((y + x * mixer.D) * silu(gate)))
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("sizes", [(41,), (7, 1, 30, 1, 2), (1,) * 41], ids=["one", "some", "all"])
def test_equals_the_mixer_of_transformers(mixer: Callable[..., Any], sizes: Sizes) -> None:
    hidden = torch.randn(2, 41, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = ours(mixer, hidden, sizes), mixer(hidden)
    error = (found - expected).abs().max() / expected.std().clamp(min=1)
    assert error < 1e-5
