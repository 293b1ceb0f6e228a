"""Bamba: Mamba-2 layers, a few of attention whose heads turn by half; an MLP in each."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.state_space_config import read_state_space_dual
from edgewright.model.state_space_weights import take_state_space_dual
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_attention,
)

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    norm="final_layernorm",
    feed_forward="feed_forward",
    norms={"mixer_norm": "input_layernorm", "feed_forward_norm": "pre_ff_layernorm"},
)


def read_config(reader: ConfigReader) -> ModelConfig:
    # transformers turns half of each head whatever attn_rotary_emb says.
    reader.ignore("attn_rotary_emb", "num_logits_to_keep", "use_mamba_kernels")
    reader.ignore("z_loss_coefficient")
    sizes = read_sizes(reader, max_context=262144, kv_heads=8)
    norm = read_rms_norm(reader, 1e-5)
    bias = reader.boolean("attention_bias", False)
    attention = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context, part=0.5),
        qkv_bias=bias,
        output_bias=bias,
    )
    recurrent = read_state_space_dual(reader, sizes.hidden, norm)
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
    )
    attends = set(reader.integers("attn_layer_indices", []))
    layers = tuple(
        LayerSpec(attention if index in attends else recurrent, feed_forward)
        for index in range(sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("bamba", layers, norm, tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec)
    assert isinstance(spec, StateSpaceDualSpec)
    return take_state_space_dual(source, ours, f"{theirs}.mamba", spec)
