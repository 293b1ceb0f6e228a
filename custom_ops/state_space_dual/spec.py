"""StateSpaceDual: Mamba-2's recurrence over the steps of a call, for any number of groups."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="StateSpaceDual",
    function="state_space_dual",
    inputs=(
        TensorSpec("x", "float32"),  # [B, S, H*P]
        TensorSpec("dt", "float32"),  # [B, S, H], finished: after bias, softplus and clamp
        TensorSpec("a", "float32"),  # [H], at most 0
        TensorSpec("b", "float32"),  # [B, S, G*N]
        TensorSpec("c", "float32"),  # [B, S, G*N]
        TensorSpec("skip", "float32"),  # [H]
        TensorSpec("state", "float32"),  # [B, H, N, P]
        TensorSpec("length", "int64"),  # [B], real tokens in this call, 0..S
    ),
    outputs=(
        TensorSpec("y", "float32"),  # [B, S, H*P]
        TensorSpec("state_out", "float32"),
    ),
    attributes=(AttributeSpec("groups", "int"),),  # head h reads the b and c of group h // (H/G)
    in_place=(("state", "state_out"),),
)
