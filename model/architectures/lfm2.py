"""LFM2: gated short convolutions, every few layers attention with normalised heads."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.short_convolution import ShortConvolutionSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_sizes
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_attention,
    take_convolution,
    take_linear,
    take_mlp,
)

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    norm="embedding_norm",
    feed_forward="feed_forward",
    norms={"mixer_norm": "operator_norm", "feed_forward_norm": "ffn_norm"},
)
_ATTENTION, _CONVOLUTION = "full_attention", "conv"
_MLP = {"gate": "w1", "up": "w3", "down": "w2"}
_ATTENTION_NAMES = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}


def read_config(reader: ConfigReader) -> ModelConfig:
    _ignore_unused(reader)
    sizes = read_sizes(reader, max_context=128000, intermediate=12288, kv_heads=8)
    norm = NormSpec("rms", reader.positive("norm_eps", 1e-5))
    attention = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context, theta=1000000.0),
        qk_norm="head",
        qk_norm_eps=norm.eps,
    )
    taps = reader.integer("conv_L_cache", 3, minimum=2, maximum=1 << 10)
    mixers: dict[str, MixerSpec] = {
        _ATTENTION: attention,
        _CONVOLUTION: ShortConvolutionSpec(taps, reader.boolean("conv_bias", False)),
    }
    feed_forward = MlpSpec(_intermediate(reader, sizes.intermediate))
    layers = tuple(
        LayerSpec(mixers[kind], feed_forward) for kind in _layer_types(reader, sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", True)
    return sizes.model("lfm2", layers, norm, reader.boolean("tie_embedding", tied))


def _ignore_unused(reader: ConfigReader) -> None:
    """How it was trained, and what transformers does not read: it rotates and gates always."""
    reader.ignore("block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init")
    reader.ignore("block_dim", "block_norm_eps", "conv_dim", "conv_dim_out", "num_heads")
    reader.ignore("conv_use_xavier_init")
    reader.ignore("theta", "block_use_swiglu", "use_pos_enc")


def _intermediate(reader: ConfigReader, size: int) -> int:
    size = reader.integer("block_ff_dim", size, maximum=1 << 24)
    multiple = reader.integer("block_multiple_of", 256, maximum=1 << 24)
    factor = reader.positive_or_null("block_ffn_dim_multiplier", 1.0)
    if not reader.boolean("block_auto_adjust_ff_dim", True):
        return size
    size = int(2 * size / 3)
    if factor is None:
        return size
    return -(-int(factor * size) // multiple) * multiple


def _layer_types(reader: ConfigReader, layers: int) -> list[str]:
    chosen = set(reader.integers("full_attn_idxs", list(range(layers))))
    types = [_ATTENTION if index in chosen else _CONVOLUTION for index in range(layers)]
    types = reader.strings("layer_types", types, layers)
    for name in types:
        if name not in (_ATTENTION, _CONVOLUTION):
            raise reader.wrong("layer_types", name, f"{_ATTENTION} or {_CONVOLUTION}")
    return types


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer, mlp=partial(take_mlp, parts=_MLP))


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec, names=_ATTENTION_NAMES)
    assert isinstance(spec, ShortConvolutionSpec)
    return (
        take_linear(source, f"{ours}.input", f"{theirs}.conv.in_proj", spec.bias)
        | take_convolution(source, f"{ours}.conv", f"{theirs}.conv.conv", spec.bias)
        | take_linear(source, f"{ours}.output", f"{theirs}.conv.out_proj", spec.bias)
    )
