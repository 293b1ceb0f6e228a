"""RoutedExperts in torch: the definition that body and kernel are held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu


def reference(
    x: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor,
    up_bias: Tensor,
    down_bias: Tensor,
    *,
    activation: str,
    alpha: float,
    limit: float,
) -> Tensor:
    tokens = x.flatten(0, -2)  # [T, H]
    choices = expert_index.shape[-1]
    index = expert_index.reshape(len(tokens), choices)  # [T, k]
    weight = expert_weight.reshape(len(tokens), choices)  # [T, k]
    result = torch.zeros_like(tokens)
    for expert in torch.unique(index).tolist():
        token, slot = torch.where(index == expert)
        rows = tokens[token]  # [tokens of this expert, H]
        bias = [b[expert % len(b)] for b in (gate_bias, up_bias, down_bias)]
        u = linear(rows, up[expert].float()) + bias[1]
        if activation == "relu_squared":
            hidden = relu(u).square()
        else:
            g = linear(rows, gate[expert].float()) + bias[0]
            hidden = activate(g, u, activation, alpha, limit)
        y = linear(hidden, down[expert].float()) + bias[2]
        result = result.index_add(0, token, y * weight[token, slot, None])
    return result.reshape(x.shape)


def activate(gate: Tensor, up: Tensor, activation: str, alpha: float, limit: float) -> Tensor:
    match activation:
        case "silu":
            return silu(gate) * up
        case "gelu":
            return gelu(gate) * up
        case "gelu_tanh":
            return gelu(gate, approximate="tanh") * up
        case "swiglu_clamped":
            gate = gate.clamp(max=limit)
            return (up.clamp(-limit, limit) + 1) * gate * torch.sigmoid(alpha * gate)
    raise ValueError(f"RoutedExperts has no activation {activation!r}")


def fake(
    x: Tensor,
    expert_index: Tensor,
    expert_weight: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor,
    up_bias: Tensor,
    down_bias: Tensor,
    *,
    activation: str,
    alpha: float,
    limit: float,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
