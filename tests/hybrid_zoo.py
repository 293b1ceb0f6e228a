"""The model zoo's mixtures of attention with convolutions, gated recurrences and Mamba-2 in one
stack: name → model_type and what its config has beside or in place of the base."""

from __future__ import annotations

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_THREE: dict[str, Json] = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
_NEMOTRON: dict[str, Json] = {
    "layer_norm_epsilon": 1e-4,
    "mamba_head_dim": 11,
    "ssm_state_size": 10,
    "time_step_min": 0.05,
    "moe_intermediate_size": 22,
    "moe_shared_expert_intermediate_size": 26,
    "chunk_size": 16,
}
_FALCON: dict[str, Json] = {
    "rms_norm_eps": 1e-4,
    "mamba_d_head": 13,
    "mamba_d_state": 12,
    "mamba_chunk_size": 16,
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 0.7,
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.8, 0.9, 1.1, 0.7, 1.2],
    "mlp_multipliers": [0.75, 1.1],
    "key_multiplier": 0.8,
    "embedding_multiplier": 4.5,
    "lm_head_multiplier": 0.7,
}
_ZAMBA: dict[str, Json] = {
    "num_key_value_heads": 3,
    "mamba_d_state": 10,
    "n_mamba_heads": 8,
    "adapter_rank": 7,
    "chunk_size": 16,
    "time_step_min": 0.03,
}


HYBRID: dict[str, tuple[str, dict[str, Json]]] = {
    "lfm2": (
        "lfm2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "block_multiple_of": 10,
            "block_ffn_dim_multiplier": 1.3,
            "tie_word_embeddings": True,
        },
    ),
    "lfm2-biased": (
        "lfm2",
        {
            **_THREE,
            "num_hidden_layers": 5,
            "full_attn_idxs": [0, 3],
            "conv_bias": True,
            "conv_L_cache": 5,
            "block_auto_adjust_ff_dim": False,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "recurrent-gemma": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 146,
            "attention_window_size": 9,
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "recurrent-gemma-wide": (
        "recurrent_gemma",
        {
            **_THREE,
            "lru_width": 69,
            "conv1d_width": 2,
            "block_types": ["attention", "recurrent"],
            "attention_bias": True,
            "attention_window_size": 20,
            "logits_soft_cap": 5.0,
            "hidden_activation": "silu",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e4,
                "partial_rotary_factor": 0.25,
            },
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            **_NEMOTRON,
            "hybrid_override_pattern": "M-*M-",
            "mamba_num_heads": 8,
            "mamba_head_dim": 40,
            "n_groups": 8,
            # Of groups as small as these some are nearly 0, where float32 itself is inexact.
            "layer_norm_epsilon": 1e-2,
        },
    ),
    "nemotron-h-experts": (
        "nemotron_h",
        {
            **_NEMOTRON,
            "layers_block_type": [
                "linear_attention",
                "moe",
                "full_attention",
                "moe",
                "linear_attention",
            ],
            "mamba_num_heads": 6,
            "n_groups": 2,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "norm_topk_prob": False,
            "routed_scaling_factor": 0.7,
        },
    ),
    "nemotron-h-latent": (
        "nemotron_h",
        {
            **_NEMOTRON,
            **_THREE,
            "hybrid_override_pattern": "EM*E-",
            "mamba_num_heads": 5,
            "n_groups": 1,
            "use_bias": True,
            "use_conv_bias": False,
            "mlp_bias": True,
            "conv_kernel": 3,
            "n_routed_experts": 12,
            "n_group": 3,
            "topk_group": 2,
            "moe_latent_size": 34,
            "routed_scaling_factor": 1.8,
        },
    ),
    "falcon-h1": (
        "falcon_h1",
        {**_FALCON, "mamba_n_heads": 5, "mamba_d_ssm": 65},
    ),
    "falcon-h1-normed": (
        "falcon_h1",
        {
            **_FALCON,
            **_THREE,
            "mamba_n_heads": 8,
            "mamba_d_ssm": 104,
            "mamba_n_groups": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": True,
            "mamba_proj_bias": True,
            "projectors_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_conv_bias": False,
        },
    ),
    "falcon-h1-gated-tied": (
        "falcon_h1",
        {
            "num_hidden_layers": 2,
            "mamba_n_heads": 8,
            "mamba_d_ssm": None,
            "mamba_expand": 2,
            "mamba_d_head": "auto",
            "mamba_d_state": 6,
            "mamba_chunk_size": 16,
            "mamba_n_groups": 8,
            "mamba_d_conv": 3,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "rms_norm_eps": 1e-2,
            "time_step_limit": [0.05, 0.8],
            "tie_word_embeddings": True,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **_ZAMBA,
            "num_hidden_layers": 5,
            "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid"],
            "num_mem_blocks": 2,
            "use_mem_rope": True,
            "tie_word_embeddings": True,
        },
    ),
    "zamba2-adapted": (
        "zamba2",
        {
            **_ZAMBA,
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "head_dim": 20,
            "attention_head_dim": 20,
            "use_shared_attention_adapter": True,
            "mamba_ngroups": 4,
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "zamba2-untied": (  # transformers shares no block then
        "zamba2",
        {
            **_ZAMBA,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "mamba_ngroups": 1,
            "tie_word_embeddings": False,
        },
    ),
    "zamba2-biased": (
        "zamba2",
        {
            **_ZAMBA,
            "num_hidden_layers": 2,
            "layers_block_type": ["mamba", "hybrid"],
            "tie_word_embeddings": True,
            "add_bias_linear": True,
            "use_mem_rope": True,
            "mamba_ngroups": 2,
            "mamba_d_conv": 3,
            "hidden_act": "silu",
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 5e4,
                "factor": 2.0,
            },
        },
    ),
}
