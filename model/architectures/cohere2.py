"""Cohere 2 (Command R7B, Command A): attention and MLP side by side behind one layer norm; sliding
layers rotate interleaved pairs, full ones do not rotate at all."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights
from edgewright.model.windows import every_nth_full, read_windows

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    _require_published_wiring(reader)
    sizes = read_sizes(reader, max_context=8192)
    window = reader.integer_or_null("sliding_window", 4096)
    period = reader.integer("sliding_window_pattern", 4)
    windows = read_windows(reader, sizes.layers, window, every_nth_full(sizes.layers, period))
    reader.require("layer_switch", period)
    bias = reader.boolean("attention_bias", False)
    mixer = replace(sizes.attention, qkv_bias=bias, output_bias=bias)
    rope = read_rope(reader, sizes.head_dim, sizes.max_context, interleaved=True)
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = tuple(
        LayerSpec(replace(mixer, window=w, rope=rope if w else None), feed_forward, "parallel")
        for w in windows
    )
    norm = NormSpec("layer", reader.positive("layer_norm_eps", 1e-5))
    tied = reader.boolean("tie_word_embeddings", True)
    return replace(
        sizes.model("cohere2", layers, norm, tied),
        logit_scale=reader.number("logit_scale", 0.0625),
    )


def _require_published_wiring(reader: ConfigReader) -> None:
    """Switches that published configs carry at the only value anything computes."""
    for key in ("use_parallel_block", "use_gated_activation"):
        reader.require(key, True)
    reader.require("use_qk_norm", False)
    reader.require("rotary_pct", 1)
    reader.require("position_embedding_type", "rope_gptj")
    reader.require("order_of_interleaved_layers", "local_attn_first")
    # How training laid the embeddings out; tie_word_embeddings says whether they are shared.
    reader.ignore("use_embedding_sharing", "use_parallel_embedding", "_sliding_window_pattern")


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config)
