"""CachedAttention: append new keys and values to a paged cache, then attend to what it holds."""

from edgewright.custom_ops.spec import AttributeSpec, OpSpec, TensorSpec

SPEC = OpSpec(
    name="CachedAttention",
    function="cached_attention",
    # int8: a row, one head of one token, carries its own scale (int8_rows.py).
    types={"C": ("float32", "float16", "int8")},
    inputs=(
        TensorSpec("query", "float32"),  # [B, S, H*D]
        TensorSpec("key", "float32"),  # [B, S, KV*D]
        TensorSpec("value", "float32"),  # [B, S, KV*Dv]
        TensorSpec("key_cache", "C"),  # [P, KV, page, D]
        TensorSpec("value_cache", "C"),  # [P, KV, page, Dv]
        TensorSpec("table", "int64"),  # [B, pages]: position p of a row is in page p // page
        TensorSpec("start", "int64"),  # [B], tokens already held
        TensorSpec("length", "int64"),  # [B], real tokens in this call, 0..S
        TensorSpec("sinks", "float32"),  # [H] or [1]; -inf is none
    ),
    outputs=(
        TensorSpec("output", "float32"),  # [B, S, H*Dv]
        TensorSpec("key_cache_out", "C"),
        TensorSpec("value_cache_out", "C"),
    ),
    attributes=(
        AttributeSpec("num_heads", "int"),
        AttributeSpec("scale", "float"),
        AttributeSpec("window", "int", 0),  # a query sees this many keys, itself included; 0: all
        AttributeSpec("softcap", "float", 0.0),  # 0: none
    ),
    in_place=(("key_cache", "key_cache_out"), ("value_cache", "value_cache_out")),
)
