"""A mixer's settings go in; the module that a training step runs in its place comes out, and what
its parameters begin as."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgewright.artifacts.errors import TrainingError
from edgewright.model.config import MixerSpec
from edgewright.model.mixer import Mixer
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.latent_attention import LatentAttentionSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.training.causal_attention import CausalAttention, CausalLatentAttention

# Mamba-2 as published begins with decays and steps spread over these, evenly in their logarithms.
_DECAYS = (1.0, 16.0)
_STEPS = (1e-3, 1e-1)


class _NegativeExp(nn.Module):
    """A decay is trained, and stored, as the logarithm of its size, so that it stays below zero."""

    def forward(self, logarithm: Tensor) -> Tensor:
        return -logarithm.exp()

    def right_inverse(self, decay: Tensor) -> Tensor:
        return (-decay).log()


def trainable_mixer(hidden: int, spec: MixerSpec) -> Mixer:
    if isinstance(spec, AttentionSpec):
        return CausalAttention(hidden, spec)
    if isinstance(spec, LatentAttentionSpec):
        return CausalLatentAttention(hidden, spec)
    if isinstance(spec, StateSpaceDualSpec):
        mixer = spec.build(hidden)
        with torch.no_grad():
            mixer.decay.fill_(-1.0)
        parametrize.register_parametrization(mixer, "decay", _NegativeExp())
        return mixer
    raise TrainingError(f"{type(spec).__name__} cannot be trained yet")


@torch.no_grad()
def initialise(name: str, parameter: nn.Parameter, draw: torch.Generator) -> None:
    """What a half adds to the stream starts at zero, so that depth does not matter at first."""
    if name.endswith("decay.original"):
        parameter.copy_(_spread(_DECAYS, parameter))
    elif name.endswith("step_bias"):
        step = _spread(_STEPS, parameter).exp()
        # The inverse of softplus.
        parameter.copy_((step + torch.log(-torch.expm1(-step)))[_shuffled(parameter, draw)])
    elif name.endswith("conv.bias"):
        parameter.zero_()
    elif name.endswith("conv.weight"):
        reach = 1 / math.sqrt(parameter.shape[0])
        parameter.uniform_(-reach, reach, generator=draw)
    elif parameter.ndim == 1:
        parameter.fill_(1.0)
    elif name.endswith(("output.weight", "down.weight")):
        parameter.zero_()
    else:
        scale = 0.02 if name.startswith("embedding") else 0.5 / math.sqrt(parameter.shape[1])
        parameter.normal_(0.0, scale, generator=draw)


def _spread(ends: tuple[float, float], like: Tensor) -> Tensor:
    return torch.linspace(math.log(ends[0]), math.log(ends[1]), like.numel())


def _shuffled(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randperm(like.numel(), generator=draw)
