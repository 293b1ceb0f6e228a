"""The model zoo's latent attention: name → model_type, what its config has beside or in place of
the base, and the original length of a rotation that changes with the context."""

from __future__ import annotations

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

# Latent attention: every size its own, and rank and rotation in no multiple of a vector.
_LATENT: dict[str, Json] = {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "kv_lora_rank": 20,
    "q_lora_rank": 26,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "head_dim": 6,
    "v_head_dim": 14,
}
_LATENT_LITE: dict[str, Json] = {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 36,
    "q_lora_rank": None,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 9,
    "attention_bias": True,
}
_GROUPS: dict[str, Json] = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 28,
    "n_group": 4,
    "topk_group": 2,
}
_FORTY: Json = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.707,
    "mscale_all_dim": 1.1,
}
_OURS: dict[str, Json] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "mlp_bias": False,
    "mixer_types": ["mamba2", "latent_attention", "mamba2"],
    "kv_lora_rank": 18,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "mamba_n_heads": 6,
    "mamba_d_head": 20,
    "mamba_d_state": 12,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


LATENT: dict[str, tuple[str, dict[str, Json], int | None]] = {
    "deepseek-v2": (
        "deepseek_v2",
        {
            **_LATENT,
            **_GROUPS,
            "first_k_dense_replace": 1,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.7,
            "rope_parameters": _FORTY,
        },
        None,
    ),
    "deepseek-v2-lite": (
        "deepseek_v2",
        {
            **_LATENT_LITE,
            "num_hidden_layers": 2,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "deepseek-v3": (
        "deepseek_v3",
        {**_LATENT, **_GROUPS, "first_k_dense_replace": 1, "rope_parameters": _FORTY},
        None,
    ),
    "deepseek-v3-halves": (
        "deepseek_v3",
        {
            **_LATENT_LITE,
            **_GROUPS,
            "num_hidden_layers": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
            "rope_interleave": False,
        },
        None,
    ),
    "deepseek-v3-dense": (
        "deepseek_v3",
        {
            **_LATENT,
            "num_hidden_layers": 2,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        },
        None,
    ),
    "minicpm3": (
        "minicpm3",
        {
            **_LATENT,
            "scale_emb": 4,
            "dim_model_base": 40,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.05, 1.1],
                "long_factor": [1.0, 1.5, 2.0],
                "original_max_position_embeddings": 64,
            },
        },
        64,
    ),
    "minicpm3-unscaled": (
        "minicpm3",
        {
            **_LATENT_LITE,
            "v_head_dim": None,
            "scale_emb": 1,
            "scale_depth": None,
            "dim_model_base": None,
            "mlp_bias": True,
        },
        None,
    ),
    "youtu": ("youtu", {**_LATENT, "tie_word_embeddings": True, "rope_parameters": _FORTY}, None),
    "youtu-halves": ("youtu", {**_LATENT_LITE, "rope_interleave": False}, None),
    "glm4-moe-lite": (
        "glm4_moe_lite",
        {**_LATENT, **_GROUPS, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
        None,
    ),
    "glm4-moe-lite-grouped": (
        "glm4_moe_lite",
        {
            **_LATENT_LITE,
            **_GROUPS,
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "norm_topk_prob": False,
            "rope_interleave": False,
            "rope_parameters": _FORTY,
        },
        None,
    ),
    "latent-hybrid": ("latent_hybrid", {**_OURS, "tie_word_embeddings": True}, None),
    "latent-hybrid-yarn": (
        "latent_hybrid",
        {
            **_OURS,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "mixer_types": ["latent_attention", "mamba2", "latent_attention"],
            "mamba_n_groups": 1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
        None,
    ),
}
