"""The feed-forward halves: gated MLP and mixture of routed experts, [..., hidden] → the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.model.config import Activation, FeedForwardSpec, MlpSpec, MoeSpec
from edgewright.model.linear import Linear
from edgewright.model.ops import routed_experts

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


class GatedMlp(nn.Module):
    def __init__(self, hidden_size: int, spec: MlpSpec) -> None:
        super().__init__()
        self.activate = _ACTIVATIONS[spec.activation]
        self.gate = Linear(hidden_size, spec.intermediate, spec.bias)
        self.up = Linear(hidden_size, spec.intermediate, spec.bias)
        self.down = Linear(spec.intermediate, hidden_size, spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.activate(self.gate(x)) * self.up(x))
        return y


class MixtureOfExperts(nn.Module):
    no_bias: Tensor

    def __init__(self, hidden_size: int, spec: MoeSpec) -> None:
        super().__init__()
        self.spec = spec
        inner = (spec.experts, spec.intermediate, hidden_size)
        self.router = Linear(hidden_size, spec.experts, spec.router_bias)
        self.gate = nn.Parameter(torch.empty(inner))
        self.up = nn.Parameter(torch.empty(inner))
        self.down = nn.Parameter(torch.empty(spec.experts, hidden_size, spec.intermediate))
        if spec.bias:
            self.gate_bias = nn.Parameter(torch.empty(inner[:2]))
            self.up_bias = nn.Parameter(torch.empty(inner[:2]))
            self.down_bias = nn.Parameter(torch.empty(spec.experts, hidden_size))
        else:
            self.register_buffer("no_bias", torch.zeros(1, 1, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self._route(self.router(x))
        bias = self.spec.bias
        return routed_experts(
            x,
            chosen,
            weights,
            self.gate,
            self.up,
            self.down,
            self.gate_bias if bias else self.no_bias,
            self.up_bias if bias else self.no_bias,
            self.down_bias if bias else self.no_bias,
            activation=self.spec.activation,
            alpha=self.spec.alpha,
            limit=self.spec.limit,
        )

    def _route(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Router scores [..., experts] → weights and indices of the chosen [..., top_k]."""
        if self.spec.scoring == "softmax_of_chosen":
            values, chosen = scores.topk(self.spec.top_k, dim=-1)
            return values.softmax(-1), chosen
        weights, chosen = scores.softmax(-1).topk(self.spec.top_k, dim=-1)
        if self.spec.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen


def build_feed_forward(hidden_size: int, spec: FeedForwardSpec) -> nn.Module:
    kind = GatedMlp if isinstance(spec, MlpSpec) else MixtureOfExperts
    return kind(hidden_size, spec)  # type: ignore[arg-type]
