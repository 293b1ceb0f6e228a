"""RoutedExperts in torch: the definition that body and kernel are held to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, silu

from edgewright.custom_ops.packed_reference import matrices_of, packed_product

Product = Callable[[Tensor, int], Tensor]  # rows [T, K], an expert → [T, N]


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
    into_gate, into_up, into_down = map(_product, (gate, up, down))
    result = torch.zeros_like(tokens)
    for expert in torch.unique(index).tolist():
        token, slot = torch.where(index == expert)
        rows = tokens[token]  # [tokens of this expert, H]
        bias = [b[expert % len(b)] for b in (gate_bias, up_bias, down_bias)]
        u = into_up(rows, expert) + bias[1]
        if activation == "relu_squared":
            hidden = relu(u).square()
        else:
            g = into_gate(rows, expert) + bias[0]
            hidden = activate(g, u, activation, alpha, limit)
        y = into_down(hidden, expert) + bias[2]
        result = result.index_add(0, token, y * weight[token, slot, None])
    return result.reshape(x.shape)


def _product(stack: Tensor) -> Product:
    if stack.dtype == torch.uint8:
        matrices = matrices_of(stack)
        return lambda rows, expert: packed_product(rows, matrices[expert])
    return lambda rows, expert: linear(rows, stack[expert].float())


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
