"""BlockGather for providers that take no op of ours: rows of a weight that is unpacked."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.block_gather.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


def lower_node(found: StaticNode) -> ir.Function:
    op = Recorder()
    ids, weight = inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    y = op("Gather", weight, ids, axis=0)
    y.name = SPEC.outputs[0].name
    return ir.Function(DOMAIN, f"{SPEC.name}_static", graph=op.graph([y], inputs), attributes=[])
