"""CausalConv: each channel's last K inputs, weighted, with the inputs before this call as state."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="CausalConv",
    function="causal_conv",
    inputs=(
        TensorSpec("x", "float32"),  # [B, S, C]
        TensorSpec("weight", "float32"),  # [K, C], K >= 2; the last row weighs the newest input
        TensorSpec("bias", "float32"),  # [C]
        TensorSpec("state", "float32"),  # [B, K-1, C], the last real inputs, oldest first
        TensorSpec("length", "int64"),  # [B], real tokens in this call, 0..S
    ),
    outputs=(
        TensorSpec("y", "float32"),  # [B, S, C], zero from `length` on
        TensorSpec("state_out", "float32"),
    ),
    attributes=(AttributeSpec("activation", "string"),),  # none or silu
    in_place=(("state", "state_out"),),
)
