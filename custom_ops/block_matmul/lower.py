"""BlockMatMul for providers that take no op of ours: a function of one product, which reads the
weight in the checkpoint's own layout, so that every provider shares its bytes."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.block_matmul.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN
from edgewright.custom_ops.static_node import StaticNode


def lower_node(found: StaticNode) -> ir.Function:
    return lower(found.rank("x"), *found.shape("weight"))


def lower(rank: int, rows: int, columns: int) -> ir.Function:
    """The op's own inputs, with the weight [N, K] in x's dtype, for x of that rank."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    y = product(op, *inputs, rank=rank, rows=rows, columns=columns)
    y.name = SPEC.outputs[0].name
    return ir.Function(DOMAIN, f"{SPEC.name}_static", graph=op.graph([y], inputs), attributes=[])


def product(
    op: Recorder, x: ir.Value, weight: ir.Value, *, rank: int, rows: int, columns: int
) -> ir.Value:
    """x [1, ..., S, K] times weight [N, K] transposed, where all but one size before K are 1."""
    flat = op("Reshape", x, (-1, columns))
    return op("Reshape", op("Gemm", flat, weight, transB=1), (*(1,) * (rank - 2), -1, rows))
