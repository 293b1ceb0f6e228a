"""GatedMatMul for providers that take no op of ours: one product and the gate, with the weight
[2I, K] unpacked."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.block_matmul.lower import product
from edgewright.custom_ops.gated_matmul.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


def lower_node(found: StaticNode) -> ir.Function:
    rows, columns = found.shape("weight")
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    both = product(op, *inputs, rank=found.rank("x"), rows=rows, columns=columns)
    gate, up = op.several("Split", 2, both, axis=-1, num_outputs=2)
    y = op("Mul", activated(op, gate, found.text("activation")), up)
    y.name = SPEC.outputs[0].name
    return ir.Function(DOMAIN, f"{SPEC.name}_static", graph=op.graph([y], inputs), attributes=[])


def activated(op: Recorder, gate: ir.Value, activation: str) -> ir.Value:
    match activation:
        case "silu":
            return op("Mul", gate, op("Sigmoid", gate))
        case "gelu":
            return op("Gelu", gate)
        case "gelu_tanh":
            return op("Gelu", gate, approximate="tanh")
    raise ExportError(f"GatedMatMul: unknown activation {activation!r}")
