"""The feed-forward halves: MLP and mixture of routed experts, [..., hidden] → the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgewright.model.activation import ACTIVATIONS
from edgewright.model.config import FeedForwardSpec, MlpSpec, MoeSpec
from edgewright.model.linear import Linear, scaled
from edgewright.model.ops import routed_experts


class Mlp(nn.Module):
    def __init__(self, hidden_size: int, spec: MlpSpec) -> None:
        super().__init__()
        self.spec = spec
        self.activate = ACTIVATIONS[spec.activation]
        self.gate = Linear(hidden_size, spec.intermediate, spec.bias) if spec.gated else None
        self.up = Linear(hidden_size, spec.intermediate, spec.bias)
        self.down = Linear(spec.intermediate, hidden_size, spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.gate is None:
            inner = self.activate(up)
        else:
            inner = self.activate(scaled(self.gate(x), self.spec.gate_scale)) * up
        return scaled(self.down(inner), self.spec.down_scale)


class MixtureOfExperts(nn.Module):
    no_bias: Tensor

    def __init__(self, hidden_size: int, spec: MoeSpec) -> None:
        super().__init__()
        self.spec = spec
        width = spec.latent or hidden_size
        inner = (spec.experts, spec.intermediate, width)
        self.shared = None if spec.shared is None else Mlp(hidden_size, spec.shared)
        self.shared_gate = Linear(hidden_size, 1) if spec.shared_gate else None
        if spec.correction:
            self.correction = nn.Parameter(torch.empty(spec.experts))
        self.router = Linear(hidden_size, spec.experts, spec.router_bias)
        if spec.latent is not None:
            self.into_latent = Linear(hidden_size, spec.latent, spec.latent_bias)
            self.out_of_latent = Linear(spec.latent, hidden_size, spec.latent_bias)
        if spec.activation != "relu_squared":
            self.gate = nn.Parameter(torch.empty(inner))
        self.up = nn.Parameter(torch.empty(inner))
        self.down = nn.Parameter(torch.empty(spec.experts, width, spec.intermediate))
        if spec.bias:
            self.gate_bias = nn.Parameter(torch.empty(inner[:2]))
            self.up_bias = nn.Parameter(torch.empty(inner[:2]))
            self.down_bias = nn.Parameter(torch.empty(spec.experts, width))
        else:
            self.register_buffer("no_bias", torch.zeros(1, 1, device="cpu"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self._route(self.router(x))
        y = self._routed(x, chosen, weights)
        if self.shared is None:
            return y
        shared: Tensor = self.shared(x)
        if self.shared_gate is not None:
            shared = shared * self.shared_gate(x).sigmoid()
        return y + shared

    def _routed(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        spec, bias = self.spec, self.spec.bias
        y = routed_experts(
            x if spec.latent is None else self.into_latent(x),
            chosen,
            weights,
            self.up if spec.activation == "relu_squared" else self.gate,
            self.up,
            self.down,
            self.gate_bias if bias else self.no_bias,
            self.up_bias if bias else self.no_bias,
            self.down_bias if bias else self.no_bias,
            activation=spec.activation,
            alpha=spec.alpha,
            limit=spec.limit,
        )
        return y if spec.latent is None else self.out_of_latent(y)

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Router logits [..., experts] → weights and indices of the chosen [..., top_k]."""
        spec = self.spec
        if spec.scoring == "softmax_of_chosen":
            values, chosen = logits.topk(spec.top_k, dim=-1)
            return values.softmax(-1) * spec.weight_scale, chosen
        scores = logits.softmax(-1) if spec.scoring == "softmax" else logits.sigmoid()
        worth = scores + self.correction if spec.correction else scores
        if spec.groups > 1:
            worth = self._in_best_groups(worth)
        chosen = worth.topk(spec.top_k, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if spec.renormalise:
            weights = weights / (weights.sum(-1, keepdim=True) + spec.renormalise_eps)
        return weights * spec.weight_scale, chosen

    def _in_best_groups(self, worth: Tensor) -> Tensor:
        """The worth of experts outside the chosen groups becomes less than any other."""
        spec = self.spec
        grouped = worth.reshape(*worth.shape[:-1], spec.groups, -1)
        best = 1 if spec.group_score == "best" else 2
        of_group = grouped.topk(best, dim=-1).values.sum(-1)
        chosen = of_group.topk(spec.chosen_groups, dim=-1).indices
        # A comparison instead of a scatter: [..., groups, 1] against [..., 1, chosen].
        numbers = torch.arange(spec.groups, device=worth.device)
        is_chosen = (numbers[:, None] == chosen.unsqueeze(-2)).any(-1, keepdim=True)
        return torch.where(is_chosen, grouped, float("-inf")).flatten(-2)


def build_feed_forward(hidden_size: int, spec: FeedForwardSpec) -> nn.Module:
    if isinstance(spec, MlpSpec):
        return Mlp(hidden_size, spec)
    return MixtureOfExperts(hidden_size, spec)
