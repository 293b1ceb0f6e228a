"""latent_hybrid put together from transformers' own blocks: DeepSeek-V3's attention, Mamba-2's
mixer, llama's MLP and norms. Importing it makes transformers' Auto classes know the model type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

Rotation = tuple[Tensor, Tensor]


class LatentHybridConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    model_type = "latent_hybrid"


def _latent_config(config: LatentHybridConfig) -> DeepseekV3Config:
    names = (
        "hidden_size num_attention_heads kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim"
        " max_position_embeddings"
    )
    found = DeepseekV3Config(
        **{name: getattr(config, name) for name in names.split()},
        rope_parameters=getattr(config, "rope_parameters", None),
        num_key_value_heads=config.num_attention_heads,
        q_lora_rank=None,
        rope_interleave=False,
    )
    found._attn_implementation = "eager"
    return found


def _mamba_config(config: LatentHybridConfig) -> Mamba2Config:
    return Mamba2Config(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_heads=config.mamba_n_heads,
        head_dim=config.mamba_d_head,
        state_size=config.mamba_d_state,
        n_groups=config.mamba_n_groups,
        conv_kernel=config.mamba_d_conv,
        expand=config.mamba_n_heads * config.mamba_d_head // config.hidden_size,
        layer_norm_epsilon=config.rms_norm_eps,
    )


def _latent_attention(config: LatentHybridConfig, index: int) -> DeepseekV3Attention:
    attention = DeepseekV3Attention(_latent_config(config), index)
    attention.scaling = getattr(config, "attention_multiplier", attention.qk_head_dim**-0.5)
    attention.kv_a_layernorm.variance_epsilon = config.rms_norm_eps
    if not getattr(config, "latent_norm", True):
        setattr(attention, "kv_a_layernorm", nn.Identity())  # noqa: B010 - of another type
    for setting, part in (
        ("query_bias", "q_proj"),
        ("latent_bias", "kv_a_proj_with_mqa"),
        ("output_bias", "o_proj"),
    ):
        if getattr(config, setting, False):
            plain = getattr(attention, part)
            setattr(attention, part, nn.Linear(plain.in_features, plain.out_features, bias=True))
    return attention


class _Layer(nn.Module):
    def __init__(self, config: LatentHybridConfig, index: int) -> None:
        super().__init__()
        self.residual = getattr(config, "residual_multiplier", 1.0)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = LlamaMLP(config)  # type: ignore[no-untyped-call]
        self.is_latent = config.mixer_types[index] == "latent_attention"
        if self.is_latent:
            self.self_attn = _latent_attention(config, index)
        else:
            self.mamba = Mamba2Mixer(_mamba_config(config), index, initialize_mixer_weights=False)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor) -> Tensor:
        h = self.input_layernorm(x)
        mixed = self.self_attn(h, rotation, mask)[0] if self.is_latent else self.mamba(h)
        x = x + mixed * self.residual
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x)) * self.residual
        return y


class _Body(nn.Module):
    def __init__(self, config: LatentHybridConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.scale = getattr(config, "embedding_multiplier", 1.0)
        count = config.mixer_types.count("latent_attention")
        self.windows = getattr(config, "attention_windows", [0] * count)
        self.frequencies = getattr(config, "rope_frequencies", None)
        if count and self.frequencies is None:
            self.rotary_emb = DeepseekV3RotaryEmbedding(_latent_config(config))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids) * self.scale
        positions = torch.arange(input_ids.shape[1])
        latent = 0
        for layer in self.layers:
            rotation, mask = (x, x), x
            if layer.is_latent:
                rotation = self._rotation(x, positions, latent)
                mask = _mask(positions, self.windows[latent])
                latent += 1
            x = layer(x, rotation, mask)
        y: Tensor = self.norm(x)
        return y

    def _rotation(self, x: Tensor, positions: Tensor, latent: int) -> Rotation:
        if self.frequencies is None:
            cos, sin = self.rotary_emb(x, positions[None])
            return cos, sin
        angles = positions[:, None].float() * torch.tensor(self.frequencies[latent])
        angles = torch.cat((angles, angles), dim=-1)[None]
        return angles.cos(), angles.sin()


def _mask(positions: Tensor, window: int) -> Tensor:
    """Added to the scores [1, 1, tokens, tokens]."""
    back = positions[:, None] - positions[None, :]
    hidden = (back < 0) | (back >= window if window else back < 0)
    return torch.zeros(back.shape).masked_fill(hidden, torch.finfo(torch.float32).min)[None, None]


class LatentHybridForCausalLM(PreTrainedModel):  # type: ignore[no-untyped-call]
    config_class = LatentHybridConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LatentHybridConfig) -> None:
        super().__init__(config)
        self.model = _Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.scale = getattr(config, "logit_multiplier", 1.0)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids)) * self.scale)


AutoConfig.register("latent_hybrid", LatentHybridConfig)
AutoModelForCausalLM.register(LatentHybridConfig, LatentHybridForCausalLM)
