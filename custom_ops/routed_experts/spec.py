"""RoutedExperts: each token's own k experts, weighted and summed."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="RoutedExperts",
    function="routed_experts",
    types={"W": ("float32", "float16", "bfloat16", "uint8")},
    inputs=(
        TensorSpec("x", "float32"),  # [..., H]
        TensorSpec("expert_index", "int64"),  # [..., k], each in 0..E-1
        TensorSpec("expert_weight", "float32"),  # [..., k]
        # A weight of uint8 is a packed one, a matrix for each expert.
        TensorSpec("gate", "W"),  # [E, I, H]; relu_squared has none: up may stand here
        TensorSpec("up", "W"),  # [E, I, H]
        TensorSpec("down", "W"),  # [E, H, I]
        TensorSpec("gate_bias", "float32"),  # [E, I], or [1, 1] for one value everywhere
        TensorSpec("up_bias", "float32"),
        TensorSpec("down_bias", "float32"),  # [E, H] or [1, 1]
    ),
    outputs=(TensorSpec("y", "float32"),),
    attributes=(
        AttributeSpec(
            "activation", "string"
        ),  # silu, gelu, gelu_tanh, swiglu_clamped or relu_squared
        AttributeSpec("alpha", "float", 1.702),  # swiglu_clamped only
        AttributeSpec("limit", "float", 7.0),  # swiglu_clamped only
    ),
)
