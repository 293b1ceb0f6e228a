"""gpt-oss: attention with sinks, windows in every other layer, and clamped, biased experts."""

from __future__ import annotations

from dataclasses import replace

from edgewright.artifacts.json_text import Json
from edgewright.model.config import LayerSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import one_dtype
from edgewright.model.lazy import LazyTensor, strided_rows, transpose_last_two, widen
from edgewright.model.moe_config import read_moe
from edgewright.model.rope_config import read_rope
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights, take_linear
from edgewright.model.windows import every_nth_full, read_windows

INERT_TENSORS: tuple[str, ...] = ()
_SCALING: dict[str, Json] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read_config(reader: ConfigReader) -> ModelConfig:
    # Names from before the model came to transformers, beside the ones it reads.
    reader.ignore("experts_per_token", "initial_context_length")
    sizes = read_sizes(reader, max_context=131072, head_dim=64)
    window = reader.integer_or_null("sliding_window", 128)
    windows = read_windows(reader, sizes.layers, window, every_nth_full(sizes.layers, 2))
    bias = reader.boolean("attention_bias", True)
    # An empty section means no scaling here; only a missing one means the published scaling.
    scaling = None if "rope_parameters" in reader else _SCALING
    rope = read_rope(reader, sizes.head_dim, sizes.max_context, theta=150000.0, scaling=scaling)
    mixer = replace(sizes.attention, rope=rope, qkv_bias=bias, output_bias=bias, sinks=True)
    experts = replace(
        read_moe(reader, sizes.intermediate, experts=128, top_k=4),
        # hidden_act is carried along; the activation is this one.
        activation="swiglu_clamped",
        alpha=reader.number("swiglu_alpha", 1.702),
        limit=reader.positive("swiglu_limit", 7.0),
        bias=True,
        router_bias=True,
        scoring="softmax_of_chosen",
    )
    layers = tuple(LayerSpec(replace(mixer, window=w), experts) for w in windows)
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("gpt_oss", layers, read_rms_norm(reader, 1e-5), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, experts=_take_experts)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    theirs = f"{layer}.mlp.experts"
    gate_up = _as_rows(source, f"{theirs}.gate_up_proj")
    bias = widen(source.take(f"{theirs}.gate_up_proj_bias"))
    matrices = {
        f"{ours}.gate": strided_rows(gate_up, 0, 2, dim=-2),
        f"{ours}.up": strided_rows(gate_up, 1, 2, dim=-2),
        f"{ours}.down": _as_rows(source, f"{theirs}.down_proj"),
    }
    return (
        take_linear(source, f"{ours}.router", f"{layer}.mlp.router", spec.router_bias)
        | one_dtype(matrices)
        | {
            f"{ours}.gate_bias": strided_rows(bias, 0, 2, dim=-1),
            f"{ours}.up_bias": strided_rows(bias, 1, 2, dim=-1),
            f"{ours}.down_bias": widen(source.take(f"{theirs}.down_proj_bias")),
        }
    )


def _as_rows(source: TensorSource, name: str) -> LazyTensor:
    """[experts, out, in]; only plain tensors are stored as [experts, in, out]."""
    tensor = source.take(name)
    return tensor if source.is_block_scaled(name) else transpose_last_two(tensor)
