"""The model zoo's state-space models: name → model_type and keyword arguments of its config."""

from __future__ import annotations

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_ALONE: dict[str, Json] = {
    "vocab_size": 1003,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "layer_norm_epsilon": 1e-4,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_HYBRID: dict[str, Json] = {
    "vocab_size": 1003,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-4,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
# Jamba's places of attention and experts, and Mamba-2 heads, for a stack of four.
_JAMBA: dict[str, Json] = {
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
_HEADS: dict[str, Json] = {"mamba_n_heads": 6, "mamba_d_state": 16}
_GRANITE: dict[str, Json] = {
    "shared_intermediate_size": 44,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 1.25,
    "layer_types": ["mamba", "attention", "mamba", "attention"],
}


STATE_SPACE: dict[str, tuple[str, dict[str, Json]]] = {
    "mamba": ("mamba", {**_ALONE, "tie_word_embeddings": True}),
    "mamba-biased": (
        "mamba",
        {
            **_ALONE,
            "state_size": 7,
            "conv_kernel": 3,
            "expand": 3,
            "time_step_rank": 5,
            "use_bias": True,
            "use_conv_bias": False,
        },
    ),
    "falcon-mamba": ("falcon_mamba", {**_ALONE, "mixer_rms_eps": 1e-3}),
    "falcon-mamba-tied": (
        "falcon_mamba",
        {
            **_ALONE,
            "state_size": 7,
            "conv_kernel": 2,
            "intermediate_size": 76,
            "time_step_rank": 9,
            "hidden_act": "gelu",  # of the convolution; the gate stays silu
            "tie_word_embeddings": True,
        },
    ),
    "mamba2": (
        "mamba2",
        {**_ALONE, "num_heads": 6, "head_dim": 20, "n_groups": 1, "state_size": 16},
    ),
    "mamba2-grouped": (
        "mamba2",
        {
            **_ALONE,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 15,
            "n_groups": 8,
            "state_size": 7,
            "conv_kernel": 3,
            # Of groups as small as these some are nearly 0, where float32 itself is inexact.
            "layer_norm_epsilon": 1e-2,
            "use_bias": True,
            "chunk_size": 32,
            "tie_word_embeddings": True,
        },
    ),
    "mamba2-limited": (
        "mamba2",
        {
            **_ALONE,
            "num_heads": 10,
            "head_dim": 12,
            "n_groups": 2,
            "state_size": 13,
            "use_conv_bias": False,
            "hidden_act": "relu",
            "time_step_limit": [0.125, 0.75],
        },
    ),
    "jamba": ("jamba", {**_HYBRID, **_JAMBA}),
    "jamba-dense-tied": (
        "jamba",
        {
            **_HYBRID,
            **_JAMBA,
            "num_key_value_heads": 6,
            "hidden_act": "gelu",
            "num_experts": 1,
            "num_experts_per_tok": 2,  # of which nothing is made
            "mamba_d_state": 7,
            "mamba_d_conv": 3,
            "mamba_dt_rank": 9,
            "mamba_expand": 1,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "bamba": ("bamba", {**_HYBRID, **_HEADS, "head_dim": 12, "attn_layer_indices": [1, 3]}),
    "bamba-biased-tied": (
        "bamba",
        {
            **_HYBRID,
            "head_dim": 14,  # of which 7 are asked for and 8 turn, with the exponents of 7
            "num_key_value_heads": 3,
            "mamba_n_heads": 12,
            "mamba_d_state": 7,
            "mamba_d_conv": 3,
            "mamba_n_groups": 2,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "time_step_limit": [0.0, 0.5],
            "attn_layer_indices": [0],
            "tie_word_embeddings": True,
        },
    ),
    "granite-hybrid": (
        "granitemoehybrid",
        {
            **_HYBRID,
            **_HEADS,
            **_GRANITE,
            "intermediate_size": 36,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
        },
    ),
    "granite-hybrid-dense-tied": (
        "granitemoehybrid",
        {
            **_HYBRID,
            **_GRANITE,
            "mamba_n_heads": 8,
            "mamba_d_state": 7,
            "mamba_n_groups": 8,
            "mamba_d_conv": 3,
            "mamba_proj_bias": True,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "attention_bias": True,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
    ),
}
