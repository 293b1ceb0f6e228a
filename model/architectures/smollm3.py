"""SmolLM3: llama in which every fourth layer has no rotation."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import every_nth_full, read_windows

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.ignore("max_window_layers")
    sizes = read_sizes(reader, max_context=32768)
    rotated = _read_rotated(reader, sizes.layers)
    window = reader.integer_or_null("sliding_window", None)
    slides = reader.boolean("use_sliding_window", False) and window is not None
    windows = read_windows(reader, sizes.layers, window, [slides and not r for r in rotated])
    bias = reader.boolean("attention_bias", False)
    mixer = replace(sizes.attention, qkv_bias=bias, output_bias=bias)
    rope = read_rope(reader, sizes.head_dim, sizes.max_context, theta=2e6)
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
    )
    layers = tuple(
        LayerSpec(replace(mixer, window=w, rope=rope if turns else None), feed_forward)
        for w, turns in zip(windows, rotated, strict=True)
    )
    tied = reader.boolean("tie_word_embeddings", True)
    return sizes.model("smollm3", layers, read_rms_norm(reader), tied)


def _read_rotated(reader: ConfigReader, layers: int) -> list[bool]:
    """`no_rope_layers` holds, despite its name, 1 for a layer that is rotated."""
    period = reader.integer("no_rope_layer_interval", 4)
    default = [int(rotated) for rotated in every_nth_full(layers, period)]
    found = reader.integers("no_rope_layers", default)
    if len(found) < layers:
        raise reader.wrong("no_rope_layers", f"{len(found)} entries", f"{layers} entries")
    return [value != 0 for value in found[:layers]]


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
