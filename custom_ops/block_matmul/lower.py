"""BlockMatMul for providers that take no op of ours: sizes go in, a function of one MatMul comes
out, which reads the weight as `stored_weight` keeps it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgewright.custom_ops.block_matmul.spec import SPEC
from edgewright.custom_ops.recorder import Recorder
from edgewright.custom_ops.spec import DOMAIN


def lower() -> ir.Function:
    """The op's own inputs, with the weight [K, N] in x's dtype; it depends on no size."""
    op = Recorder()
    inputs = [ir.Value(name=tensor.name) for tensor in SPEC.inputs]
    y = op("MatMul", *inputs)
    y.name = SPEC.outputs[0].name
    return ir.Function(DOMAIN, f"{SPEC.name}_static", graph=op.graph([y], inputs), attributes=[])


def stored_weight(
    weight: ir.TensorProtocol, dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.LazyTensor:
    """[..., N, K] as [..., K, N] in `dtype`, made when it is written and not kept."""
    *leading, rows, columns = weight.shape.numpy()
    name = f"{weight.name}.transposed"

    def transposed() -> ir.TensorProtocol:
        values = np.swapaxes(weight.numpy(), -1, -2).astype(dtype.numpy())
        return ir.Tensor(np.ascontiguousarray(values), dtype=dtype, name=name)

    shape = ir.Shape([*leading, columns, rows])
    return ir.LazyTensor(transposed, dtype=dtype, shape=shape, name=name)
