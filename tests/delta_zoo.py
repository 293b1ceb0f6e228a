"""The model zoo's models with gated delta layers: name → model_type and keyword arguments of its
config, over the zoo's base ones where it is not in parts."""

from __future__ import annotations

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

# A head that forgets fast gives query · key times its newest value, and the norm after it makes
# that as large as any other: where the two are at right angles, only rounding errors are left. The
# norm's epsilon bounds this, and in wide heads hardly any are.
_SAFE: dict[str, Json] = {"rms_norm_eps": 1e-3}
# Each size its own; value heads are three times the key heads.
_HEADS: dict[str, Json] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 36,
    "linear_value_head_dim": 14,
    "linear_conv_kernel_dim": 3,
}
_EVEN_HEADS: dict[str, Json] = {
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 3,
    "linear_key_head_dim": 28,
    "linear_value_head_dim": 11,
    "linear_conv_kernel_dim": 4,
}
_EXPERTS: dict[str, Json] = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
# Published as seeing; what sees is stored, and left out.
_EYES: dict[str, Json] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "out_hidden_size": 60,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
_SEEING: dict[str, Json] = {
    "vision_config": _EYES,
    "image_token_id": 3,
    "video_token_id": 4,
    "vision_start_token_id": 5,
    "vision_end_token_id": 6,
}
_TEXT: dict[str, Json] = {
    "vocab_size": 1003,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
_KIMI: dict[str, Json] = {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "linear_head_dim": 36,
    "linear_num_heads": 3,
    "linear_conv_kernel_dim": 3,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
}


def _layers(pattern: str) -> list[Json]:
    return [{"d": "linear_attention", "a": "full_attention"}[letter] for letter in pattern]


DELTA: dict[str, tuple[str, dict[str, Json]]] = {
    "qwen3-next": (
        "qwen3_next",
        _SAFE | _HEADS | _EXPERTS | {"layer_types": _layers("dad"), "head_dim": 20},
    ),
    "qwen3-next-sparse": (
        "qwen3_next",
        _SAFE
        | _EVEN_HEADS
        | _EXPERTS
        | {
            "num_hidden_layers": 4,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3.5-text": (
        "qwen3_5_text",
        _SAFE | _HEADS | {"layer_types": _layers("dda"), "head_dim": 24, "attention_bias": True},
    ),
    "qwen3.5-text-yarn": (
        "qwen3_5_text",
        _SAFE
        | _EVEN_HEADS
        | {
            "layer_types": _layers("ad"),
            "num_hidden_layers": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
    "qwen3.5": (
        "qwen3_5",
        _SEEING | {"text_config": _TEXT | _SAFE | _HEADS | {"layer_types": _layers("dad")}},
    ),
    "qwen3.5-moe": (
        "qwen3_5_moe",
        _SEEING
        | {
            "text_config": _TEXT
            | _SAFE
            | _EVEN_HEADS
            | _EXPERTS
            | {"layer_types": _layers("da"), "num_hidden_layers": 2}
        },
    ),
    "qwen3.5-moe-text": (
        "qwen3_5_moe_text",
        _SAFE | _HEADS | _EXPERTS | {"layer_types": _layers("dad"), "head_dim": 16},
    ),
    "olmo-hybrid": ("olmo_hybrid", _SAFE | _HEADS | {"head_dim": 10}),
    "olmo-hybrid-unrotated": (
        "olmo_hybrid",
        _SAFE
        | _EVEN_HEADS
        | {
            "layer_types": _layers("ad"),
            "num_hidden_layers": 2,
            "head_dim": 10,
            "attention_bias": True,
            "linear_allow_neg_eigval": False,
            "tie_word_embeddings": True,
            "rope_theta": None,
        },
    ),
    "kimi-linear": (
        "kimi_linear",
        _SAFE | _KIMI | {"layer_types": _layers("dad"), "n_group": 2, "topk_group": 1},
    ),
    "kimi-linear-ranked": (
        "kimi_linear",
        _SAFE
        | _KIMI
        | {
            "layer_types": _layers("da"),
            "mlp_layer_types": ["sparse", "sparse"],
            "num_hidden_layers": 2,
            "q_lora_rank": 26,
            "attention_bias": True,
            "linear_head_dim": 27,
            "linear_conv_kernel_dim": 4,
            "norm_topk_prob": False,
            "n_shared_experts": 2,
        },
    ),
}
