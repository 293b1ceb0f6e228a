"""BlockGather: the rows of a packed weight that ids name, as float32."""

from edgewright.custom_ops.spec import OpSpec, TensorSpec

SPEC = OpSpec(
    name="BlockGather",
    function="block_gather",
    inputs=(
        TensorSpec("ids", "int64"),  # [...], each in 0..N-1
        TensorSpec("weight", "uint8"),  # packed, one matrix [N, K]
    ),
    outputs=(TensorSpec("y", "float32"),),  # [..., K]
)
