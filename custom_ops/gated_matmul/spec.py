"""GatedMatMul: both projections of a gated feed-forward layer, and what it makes of the two."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="GatedMatMul",
    function="gated_matmul",
    inputs=(
        TensorSpec("x", "float32"),  # [..., K]
        TensorSpec("weight", "uint8"),  # packed, one matrix [2I, K]: I rows of gate, then I of up
    ),
    outputs=(TensorSpec("y", "float32"),),  # [..., I]
    attributes=(AttributeSpec("activation", "string"),),  # silu, gelu or gelu_tanh, of gate
)
