"""BlockMatMul: x [..., K] times weight [N, K] transposed, as [..., N]. A weight of uint8 is packed
(docs/packed-weights.md) and of one matrix."""

from edgewright.custom_ops.spec import OpSpec, TensorSpec

SPEC = OpSpec(
    name="BlockMatMul",
    function="block_matmul",
    types={"W": ("float32", "float16", "bfloat16", "uint8")},
    inputs=(TensorSpec("x", "float32"), TensorSpec("weight", "W")),
    outputs=(TensorSpec("y", "float32"),),
)
