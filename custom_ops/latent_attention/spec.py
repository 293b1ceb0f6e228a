"""LatentAttention: append new latents to a paged cache, then attend to the keys and values that
`up` makes of what it holds."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="LatentAttention",
    function="latent_attention",
    types={"W": ("float32", "float16", "bfloat16", "uint8"), "C": ("float32", "float16", "int8")},
    inputs=(
        TensorSpec("query", "float32"),  # [B, S, H*(Dn+Dr)], a head is [nope | rotated rope]
        TensorSpec("latent", "float32"),  # [B, S, R], normalised
        TensorSpec("key_rope", "float32"),  # [B, S, Dr], rotated
        # [H*(Dn+Dv), R], a head's Dn rows for keys, then Dv for values; uint8: packed, without
        # column scales and order
        TensorSpec("up", "W"),
        TensorSpec("cache", "C"),  # [P, page, R+Dr]; int8: two rows, each with its own scale
        TensorSpec("table", "int64"),  # [B, pages]: position p of a row is in page p // page
        TensorSpec("start", "int64"),  # [B], tokens already held
        TensorSpec("length", "int64"),  # [B], real tokens in this call, 0..S
    ),
    outputs=(
        TensorSpec("output", "float32"),  # [B, S, H*Dv]
        TensorSpec("cache_out", "C"),
    ),
    attributes=(
        AttributeSpec("num_heads", "int"),
        AttributeSpec("scale", "float"),
        AttributeSpec("window", "int", 0),  # a query sees this many keys, itself included; 0: all
    ),
    in_place=(("cache", "cache_out"),),
)
