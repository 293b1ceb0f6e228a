"""config.json as published for models that mix attention with recurrences or convolutions: every
key they carry, with small sizes."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_COMMON: Config = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0",
    "use_cache": True,
    "vocab_size": 503,
}


def _published(**own: Any) -> Config:
    """`own` names what is dropped with the value `...`."""
    return {key: value for key, value in {**_COMMON, **own}.items() if value is not ...}


HYBRIDS: dict[str, Config] = {
    "LFM2-1.2B": _published(
        architectures=["Lfm2ForCausalLM"],
        block_auto_adjust_ff_dim=True,
        block_dim=64,
        block_ff_dim=130,
        block_ffn_dim_multiplier=1.0,
        block_mlp_init_scale=1.0,
        block_multiple_of=16,
        block_norm_eps=1e-05,
        block_out_init_scale=1.0,
        block_use_swiglu=True,
        block_use_xavier_init=True,
        conv_L_cache=3,
        conv_bias=False,
        conv_dim=64,
        conv_dim_out=64,
        conv_use_xavier_init=True,
        eos_token_id=7,
        full_attn_idxs=[1, 3],
        intermediate_size=...,
        model_type="lfm2",
        norm_eps=1e-05,
        num_heads=4,
        rope_theta=1000000.0,
        use_pos_enc=True,
    ),
    "LFM2.5-350M": _published(
        architectures=["Lfm2ForCausalLM"],
        block_auto_adjust_ff_dim=True,
        block_dim=64,
        block_ff_dim=130,
        block_ffn_dim_multiplier=1.0,
        block_mlp_init_scale=1.0,
        block_multiple_of=16,
        block_norm_eps=1e-05,
        block_out_init_scale=1.0,
        block_use_swiglu=True,
        block_use_xavier_init=True,
        conv_L_cache=3,
        conv_bias=False,
        conv_dim=64,
        conv_use_xavier_init=True,
        dtype="bfloat16",
        eos_token_id=7,
        intermediate_size=130,
        layer_types=["conv", "conv", "full_attention", "conv"],
        model_type="lfm2",
        norm_eps=1e-05,
        num_heads=4,
        rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
        tie_embedding=True,
        torch_dtype=...,
        use_pos_enc=True,
    ),
    "recurrentgemma-2b": _published(
        architectures=["RecurrentGemmaForCausalLM"],
        attention_bias=False,
        attention_dropout=0.0,
        attention_window_size=20,
        block_types=["recurrent", "recurrent", "attention"],
        bos_token_id=2,
        conv1d_width=4,
        embeddings_scale_by_sqrt_dim=True,
        eos_token_id=1,
        final_w_init_variance_scale=0.07692307692307693,
        head_dim=16,
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=60,
        intermediate_size=180,
        logits_soft_cap=30.0,
        lru_width=60,
        max_position_embeddings=...,
        model_type="recurrent_gemma",
        num_hidden_layers=5,
        num_key_value_heads=1,
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-06,
        rope_theta=10000.0,
        w_init_variance_scale=0.01,
    ),
}
