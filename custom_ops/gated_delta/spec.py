"""GatedDelta: the gated delta rule over the steps of a call, decaying by head or by key channel."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="GatedDelta",
    function="gated_delta",
    inputs=(
        TensorSpec("query", "float32"),  # [B, S, Hk*Dk], normalised
        TensorSpec("key", "float32"),  # [B, S, Hk*Dk], normalised
        TensorSpec("value", "float32"),  # [B, S, H*Dv]
        TensorSpec("decay", "float32"),  # [B, S, H] or [B, S, H*Dk]: logs, at most 0
        TensorSpec("beta", "float32"),  # [B, S, H]
        TensorSpec("state", "float32"),  # [B, H, Dk, Dv]
        TensorSpec("length", "int64"),  # [B], real tokens in this call, 0..S
    ),
    outputs=(
        TensorSpec("y", "float32"),  # [B, S, H*Dv]
        TensorSpec("state_out", "float32"),
    ),
    attributes=(
        AttributeSpec("num_heads", "int"),  # H; value head h uses key head h // (H/Hk)
        AttributeSpec("scale", "float"),  # of the query
    ),
    in_place=(("state", "state_out"),),
)
