"""RecurrentGemma: gated recurrences and, every few layers, attention to a window."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.lazy import LazyTensor, mapped, reshape, widen
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.gated_recurrence import GatedRecurrenceSpec
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import (
    Names,
    TensorSource,
    Weights,
    decoder_weights,
    take_attention,
    take_convolution,
    take_linear,
)

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    norm="final_norm",
    feed_forward="mlp_block",
    norms={"mixer_norm": "temporal_pre_norm", "feed_forward_norm": "channel_pre_norm"},
)
# Neither its window nor its recurrence sets a limit.
_CONTEXT = 1 << 20


def read_config(reader: ConfigReader) -> ModelConfig:
    # How its weights were first drawn, a second spelling of block_types, and a scale that
    # transformers always applies.
    reader.ignore("w_init_variance_scale", "final_w_init_variance_scale", "_block_types")
    reader.ignore("embeddings_scale_by_sqrt_dim")
    sizes = read_sizes(reader, max_context=_CONTEXT, intermediate=7680)
    activation = reader.activation("hidden_activation", "gelu_pytorch_tanh")
    attention = replace(
        sizes.attention,
        rope=read_rope(reader, sizes.head_dim, sizes.max_context, part=0.5),
        qkv_bias=reader.boolean("attention_bias", False),
        output_bias=True,
        window=reader.integer("attention_window_size", 2048),
    )
    width = reader.integer("lru_width", sizes.hidden, maximum=1 << 24)
    if width % sizes.heads:
        raise reader.error(
            f"lru_width {width} is not a multiple of num_attention_heads {sizes.heads}"
        )
    taps = reader.integer("conv1d_width", 4, minimum=2, maximum=1 << 10)
    mixers: dict[str, MixerSpec] = {
        "recurrent": GatedRecurrenceSpec(width, sizes.heads, taps, activation),
        "attention": attention,
    }
    feed_forward = MlpSpec(sizes.intermediate // 2, activation, bias=True)
    pattern = _pattern(reader)
    layers = tuple(
        LayerSpec(mixers[pattern[index % len(pattern)]], feed_forward)
        for index in range(sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", True)
    return replace(
        sizes.model("recurrent_gemma", layers, read_rms_norm(reader), tied),
        # Published code holds it in bfloat16.
        embedding_scale=float(torch.tensor(sizes.hidden**0.5, dtype=torch.bfloat16)),
        logit_softcap=reader.positive("logits_soft_cap", 30.0),
    )


def _pattern(reader: ConfigReader) -> list[str]:
    """The kinds of layers, repeated from the first to the last."""
    found = reader.raw("block_types", ["recurrent", "recurrent", "attention"])
    if not isinstance(found, list) or not found:
        raise reader.wrong("block_types", found, "a list of layer types")
    pattern = [str(kind) for kind in found]
    for kind in pattern:
        if kind not in ("recurrent", "attention"):
            raise reader.wrong("block_types", kind, "recurrent or attention")
    return pattern


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, norm_offset=True, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    theirs = f"{theirs}.temporal_block"
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, theirs, spec)
    assert isinstance(spec, GatedRecurrenceSpec)
    weights = (
        take_linear(source, f"{ours}.gate", f"{theirs}.linear_y", bias=True)
        | take_linear(source, f"{ours}.input", f"{theirs}.linear_x", bias=True)
        | take_linear(source, f"{ours}.output", f"{theirs}.linear_out", bias=True)
        | take_convolution(source, f"{ours}.conv", f"{theirs}.conv_1d", bias=True)
    )
    for part, name in (("input_gate", "input_gate"), ("decay_gate", "recurrent_gate")):
        stored = f"{theirs}.rg_lru.{name}"
        bias = source.take(f"{stored}_bias")
        weights[f"{ours}.{part}.weight"] = widen(source.take(f"{stored}_weight"))
        weights[f"{ours}.{part}.bias"] = widen(reshape(bias, (spec.width,)))
    weights[f"{ours}.decay"] = _decay(source.take(f"{theirs}.rg_lru.recurrent_param"))
    return weights


def _decay(stored: LazyTensor) -> LazyTensor:
    values = mapped(stored, lambda values: -8.0 * functional.softplus(values))
    return reshape(values, (1, *stored.shape))
