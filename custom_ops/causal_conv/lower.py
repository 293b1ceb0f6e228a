"""CausalConv for providers that take no op of ours and no dynamic shape: sizes go in, a function of
one depthwise Conv, or of one product when decoding, comes out."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.states import Update
from edgewright.custom_ops.causal_conv.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


@dataclass(frozen=True)
class StaticConv:
    """One CausalConv node whose every size is known."""

    batch: int
    seq: int
    channels: int
    taps: int
    activation: str


def lower_node(found: StaticNode) -> ir.Function:
    taps, channels = found.shape("weight")
    node = StaticConv(found.batch, found.seq, channels, taps, found.text("activation"))
    return lower(node, found.update)


def lower(node: StaticConv, update: Update = "in_graph") -> ir.Function:
    """The op's own inputs. Outputs: y and, `in_graph`, the state; as `delta`, a new state that the
    caller puts in the place of the old one where `length` is not 0."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    x, weight, bias, state, length = inputs
    seen = op("Concat", state, x, axis=1)  # [B, K-1+S, C]
    form = _product if node.seq == 1 else _depthwise
    y = _activated(op, node, form(op, node, seen, weight, bias))
    real = op("Less", tuple(range(node.seq)), op("Reshape", length, (node.batch, 1)))
    y = op("Where", op("Reshape", real, (node.batch, node.seq, 1)), y, 0.0)

    each = op("Reshape", length, (node.batch, 1, 1))
    kept = op("Add", each, op("Reshape", tuple(range(node.taps - 1)), (1, node.taps - 1, 1)))
    kept = op("Expand", kept, (node.batch, node.taps - 1, node.channels))
    new = op("GatherElements", seen, kept, axis=1)
    if update == "in_graph":
        new = op("Where", op("Greater", each, 0), new, state)
    y.name = "y"
    new.name = "state_out" if update == "in_graph" else "state_delta"
    return ir.Function(
        DOMAIN, f"{SPEC.name}_static", graph=op.graph([y, new], inputs), attributes=[]
    )


def _product(
    op: Recorder, node: StaticConv, seen: ir.Value, weight: ir.Value, bias: ir.Value
) -> ir.Value:
    return op("Add", op("ReduceSum", op("Mul", seen, weight), (1,), keepdims=1), bias)


def _depthwise(
    op: Recorder, node: StaticConv, seen: ir.Value, weight: ir.Value, bias: ir.Value
) -> ir.Value:
    shape = (node.channels, 1, node.taps)
    filters = op("Reshape", op("Transpose", weight, perm=[1, 0]), shape)
    columns = op("Transpose", seen, perm=[0, 2, 1])
    y = op("Conv", columns, filters, bias, group=node.channels)  # [B, C, S]
    return op("Transpose", y, perm=[0, 2, 1])


def _activated(op: Recorder, node: StaticConv, y: ir.Value) -> ir.Value:
    match node.activation:
        case "none":
            return y
        case "silu":
            return op("Mul", y, op("Sigmoid", y))
    raise ExportError(
        f"CausalConv: unknown activation {node.activation!r}; none or silu is required"
    )
