"""RoutedExperts for providers that take no op of ours, no Loop and no If: sizes go in, a function
of batched products in standard ops comes out.

With fewer routed pairs than experts (decoding), each pair fetches its own expert's weights;
otherwise all experts see all tokens, and those that a token did not choose count zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.routed_experts.spec import SPEC
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


@dataclass(frozen=True)
class StaticExperts:
    """One RoutedExperts node whose every size is known. `shape` is x's."""

    shape: tuple[int, ...]
    choices: int
    experts: int
    activation: str
    alpha: float
    limit: float
    shared_biases: tuple[bool, bool, bool]  # gate, up, down: [1, 1] rather than one row an expert

    @property
    def tokens(self) -> int:
        product = 1
        for size in self.shape[:-1]:
            product *= size
        return product

    @property
    def gathers(self) -> bool:
        return self.tokens * self.choices < self.experts


def lower_node(found: StaticNode) -> ir.Function:
    experts, _, width = found.shape("up")
    biases = ("gate_bias", "up_bias", "down_bias")
    node = StaticExperts(
        shape=(*(1,) * (found.rank("x") - 3), found.batch, found.seq, width),
        choices=found.size("expert_index"),
        experts=experts,
        activation=found.text("activation"),
        alpha=found.number("alpha"),
        limit=found.number("limit"),
        shared_biases=tuple(found.shape(name) == (1, 1) for name in biases),  # type: ignore[arg-type]
    )
    return lower(node)


def lower(node: StaticExperts) -> ir.Function:
    """The op's own inputs, with gate, up and down in x's dtype. Weights stand first in each product
    and tokens are columns, so that the checkpoint's own layout is the one that is read."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    x, index, share, *weights = inputs
    rows = op("Reshape", x, (node.tokens, node.shape[-1]))
    index = op("Reshape", index, (node.tokens, node.choices))
    share = op("Reshape", share, (node.tokens, node.choices))
    form = _by_pair if node.gathers else _by_expert
    y = op("Reshape", form(op, node, rows, index, share, weights), node.shape)
    y.name = SPEC.outputs[0].name
    return ir.Function(DOMAIN, f"{SPEC.name}_static", graph=op.graph([y], inputs), attributes=[])


def _by_pair(
    op: Recorder,
    node: StaticExperts,
    rows: ir.Value,
    index: ir.Value,
    share: ir.Value,
    weights: list[ir.Value],
) -> ir.Value:
    pairs, width = node.tokens * node.choices, node.shape[-1]
    chosen = op("Reshape", index, (pairs,))
    own = [op("Gather", matrix, chosen, axis=0) for matrix in weights[:3]]
    for bias, is_shared in zip(weights[3:], node.shared_biases, strict=True):
        own.append(bias if is_shared else op("Gather", bias, chosen, axis=0))
    apart = op("Reshape", rows, (node.tokens, 1, width))
    repeated = op("Expand", apart, (node.tokens, node.choices, width))
    results = _feed_forward(op, node, op("Reshape", repeated, (pairs, width, 1)), own)
    weighted = op("Mul", results, op("Reshape", share, (pairs, 1, 1)))
    apart = op("Reshape", weighted, (node.tokens, node.choices, width))
    return op("ReduceSum", apart, (1,), keepdims=0)  # [T, H]


def _by_expert(
    op: Recorder,
    node: StaticExperts,
    rows: ir.Value,
    index: ir.Value,
    share: ir.Value,
    weights: list[ir.Value],
) -> ir.Value:
    every = op("Reshape", tuple(range(node.experts)), (node.experts, 1, 1))
    chosen = op("Equal", op("Unsqueeze", index, (0,)), every)  # [E, T, k]
    shares = op("Where", chosen, op("Unsqueeze", share, (0,)), op("CastLike", 0.0, share))
    shares = op("Unsqueeze", op("ReduceSum", shares, (2,), keepdims=0), (1,))  # [E, 1, T]
    columns = op("Unsqueeze", op("Transpose", rows, perm=[1, 0]), (0,))  # [1, H, T]
    results = op("Mul", _feed_forward(op, node, columns, weights), shares)
    return op("Transpose", op("ReduceSum", results, (0,), keepdims=0), perm=[1, 0])  # [T, H]


def _feed_forward(
    op: Recorder, node: StaticExperts, columns: ir.Value, weights: list[ir.Value]
) -> ir.Value:
    """[1 or B, H, T] through B experts at once, as [B, H, T]."""
    gate, up, down, gate_bias, up_bias, down_bias = weights
    u = op("Add", op("MatMul", up, columns), op("Unsqueeze", up_bias, (2,)))
    if node.activation == "relu_squared":
        positive = op("Relu", u)
        hidden = op("Mul", positive, positive)
    else:
        g = op("Add", op("MatMul", gate, columns), op("Unsqueeze", gate_bias, (2,)))
        hidden = _activate(op, node, g, u)
    return op("Add", op("MatMul", down, hidden), op("Unsqueeze", down_bias, (2,)))


def _activate(op: Recorder, node: StaticExperts, gate: ir.Value, up: ir.Value) -> ir.Value:
    match node.activation:
        case "silu":
            return op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
        case "gelu":
            return op("Mul", op("Gelu", gate), up)
        case "gelu_tanh":
            return op("Mul", op("Gelu", gate, approximate="tanh"), up)
        case "swiglu_clamped":
            highest = op("CastLike", node.limit, gate)
            lowest = op("CastLike", -node.limit, gate)
            gate = op("Min", gate, highest)
            sigmoid = op("Sigmoid", op("Mul", gate, op("CastLike", node.alpha, gate)))
            more = op("Add", op("Max", op("Min", up, highest), lowest), op("CastLike", 1.0, up))
            return op("Mul", more, op("Mul", gate, sigmoid))
    known = "silu, gelu, gelu_tanh, swiglu_clamped or relu_squared"
    raise ExportError(f"RoutedExperts: unknown activation {node.activation!r}; {known} is required")
