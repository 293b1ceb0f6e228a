"""SelectiveScan: h[n] = exp(dt a[n]) h[n] + x b[n], y = sum over n of c[n] h[n], a channel."""

from edgewright.custom_ops.spec import OpSpec, TensorSpec

SPEC = OpSpec(
    name="SelectiveScan",
    function="selective_scan",
    inputs=(
        TensorSpec("x", "float32"),  # [B, S, D], already multiplied by dt
        TensorSpec("dt", "float32"),  # [B, S, D], >= 0
        TensorSpec("a", "float32"),  # [N, D], <= 0
        TensorSpec("b", "float32"),  # [B, S, N]
        TensorSpec("c", "float32"),  # [B, S, N]
        TensorSpec("state", "float32"),  # [B, N, D]
        TensorSpec("length", "int64"),  # [B], real tokens in this call, 0..S
    ),
    outputs=(
        TensorSpec("y", "float32"),  # [B, S, D], zero from `length` on
        TensorSpec("state_out", "float32"),
    ),
    in_place=(("state", "state_out"),),
)
