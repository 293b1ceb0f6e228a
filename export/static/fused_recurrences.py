"""Nodes of ours with a recurrence go in; functions of ONNX Runtime's own fused ops come out, for
providers that have them: LinearAttention and CausalConvWithState."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops import DOMAIN, OPS
from edgewright.custom_ops.recorder import MICROSOFT, Recorder
from edgewright.custom_ops.static_node import StaticNode

_MOST_KEYS = 256  # of a head, on WebGPU


def gated_delta(found: StaticNode) -> ir.Function | None:
    """None where a head's keys are too many."""
    _, heads, size, width = found.shape("state")
    op, inputs = _begin(found)
    query, key, value, decay, beta, state, length = inputs
    if size > _MOST_KEYS:
        return None
    real = _is_real(op, found, length)
    # A step that is not real keeps the state: it decays by exp(0) and adds 0.
    key, decay = op("Where", real, key, 0.0), op("Where", real, decay, 0.0)
    y, new = op.foreign(
        "LinearAttention",
        [query, key, value, state, decay, beta],
        {
            "q_num_heads": found.size("query") // size,
            "kv_num_heads": heads,
            "update_rule": "gated_delta",
            "scale": found.number("scale"),
        },
        [(found.batch, found.seq, heads * width), (found.batch, heads, size, width)],
    )
    return _function(op, found, inputs, y, new)


def state_space_dual(found: StaticNode) -> ir.Function | None:
    """Queries are c, keys b and values what a step adds of x; the values' heads share the keys of
    their group. None where a head's states are too many."""
    _, heads, size, width = found.shape("state")
    if size > _MOST_KEYS:
        return None
    op, inputs = _begin(found)
    x, dt, a, b, c, skip, state, length = inputs
    shape = (found.batch, found.seq, heads * width)
    real = _is_real(op, found, length)
    dt = op("Where", real, dt, 0.0)
    by_head = op("Reshape", x, (*shape[:2], heads, width))
    value = op("Reshape", op("Mul", by_head, op("Reshape", dt, (*shape[:2], heads, 1))), shape)
    y, new = op.foreign(
        "LinearAttention",
        [c, b, value, state, op("Mul", dt, a)],
        {
            "q_num_heads": found.integer("groups"),
            "kv_num_heads": heads,
            "update_rule": "gated",
            "scale": 1.0,
        },
        [shape, (found.batch, heads, size, width)],
    )
    past = op("Reshape", op("Mul", by_head, op("Reshape", skip, (heads, 1))), shape)
    return _function(op, found, inputs, op("Add", y, past), new)


def causal_conv(found: StaticNode) -> ir.Function | None:
    """The op's own state counts padded steps, so the state is gathered here."""
    taps, channels = found.shape("weight")
    op, inputs = _begin(found)
    x, weight, bias, state, length = inputs
    columns = (found.batch, channels, found.seq)
    filters = op("Reshape", op("Transpose", weight, perm=[1, 0]), (channels, 1, taps))
    y, _ = op.foreign(
        "CausalConvWithState",
        [
            op("Transpose", x, perm=[0, 2, 1]),
            filters,
            bias,
            op("Transpose", state, perm=[0, 2, 1]),
        ],
        {"activation": found.text("activation"), "ndim": 1},
        [columns, (found.batch, channels, taps - 1)],
    )
    y = op("Transpose", y, perm=[0, 2, 1])
    each = op("Reshape", length, (found.batch, 1, 1))
    kept = op("Add", each, op("Reshape", tuple(range(taps - 1)), (1, taps - 1, 1)))
    kept = op("Expand", kept, (found.batch, taps - 1, channels))
    new = op("GatherElements", op("Concat", state, x, axis=1), kept, axis=1)
    return _function(op, found, inputs, y, new)


def _begin(found: StaticNode) -> tuple[Recorder, list[ir.Value]]:
    spec = OPS[found.node.op_type]
    return Recorder(), [ir.Value(name=tensor.name) for tensor in spec.inputs]


def _is_real(op: Recorder, found: StaticNode, length: ir.Value) -> ir.Value:
    """[B, S, 1]"""
    steps = op("Reshape", tuple(range(found.seq)), (1, found.seq, 1))
    return op("Less", steps, op("Reshape", length, (found.batch, 1, 1)))


def _function(
    op: Recorder, found: StaticNode, inputs: list[ir.Value], y: ir.Value, state: ir.Value
) -> ir.Function:
    y.name, state.name = "y", "state_out"
    graph = op.graph([y, state], inputs)
    graph.opset_imports[MICROSOFT] = 1
    return ir.Function(DOMAIN, f"{found.node.op_type}_static", graph=graph, attributes=[])
