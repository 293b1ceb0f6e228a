"""SelectiveScan in standard ops, for graphs that run without the library: a Scan over the time."""

from __future__ import annotations

import onnx_ir as ir

from edgewright.custom_ops.recorder import RecordedFunction, Recorder
from edgewright.custom_ops.selective_scan.spec import SPEC


def _record(op: Recorder, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    x, dt, a, b, c, state, length = inputs
    seq = op.dim(x, 1)
    offset = op("Range", 0, op("Squeeze", seq), 1)
    real = op("Less", op("Unsqueeze", offset, (0,)), op("Unsqueeze", length, (1,)))  # [B, S]
    real = op("Unsqueeze", real, (2,))
    # A step that is not real decays by exp(0) and adds 0.
    x, dt, b, c = (op("Where", real, value, 0.0) for value in (x, dt, b, c))
    # ONNX Runtime's Scan wants at least one.
    more = op("Concat", (0, 0, 0, 0), op("Max", op("Sub", 1, seq), 0), (0,), axis=0)
    x, dt, b, c = (op("Pad", value, more) for value in (x, dt, b, c))
    steps = [op("Unsqueeze", x, (2,)), op("Unsqueeze", dt, (2,))]  # [B, S, 1, D]
    steps += [op("Unsqueeze", b, (3,)), op("Unsqueeze", c, (2,))]  # [B, S, N, 1], [B, S, 1, N]
    last, y = op.several(
        "Scan",
        2,
        state,
        *steps,
        body=_step(a),
        num_scan_inputs=4,
        scan_input_axes=(1, 1, 1, 1),
        scan_output_axes=(1,),
    )
    is_new = op("Unsqueeze", op("Greater", length, 0), (1, 2))
    y = op("Slice", op("Squeeze", y, (2,)), (0,), seq, (1,))
    return y, op("Where", is_new, last, state)


def _step(a: ir.Value) -> ir.Graph:
    op = Recorder("step.")
    kinds = ("h", "x", "dt", "b", "c")
    h, x, dt, b, c = taken = [ir.Value(name=f"step.{name}") for name in kinds]
    decay = op("Exp", op("Mul", dt, a))  # [B, N, D]
    after = op("Add", op("Mul", decay, h), op("Mul", b, x))
    outputs = [after, op("MatMul", c, after)]  # [B, N, D], [B, 1, D]
    for value in outputs:
        # ONNX Runtime's Scan wants to know the rank, which it cannot always infer.
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, None, None])
    return op.graph(outputs, taken)


SelectiveScan = RecordedFunction(SPEC, _record)
