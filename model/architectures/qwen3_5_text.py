"""Qwen3.5's text decoder: qwen3_next with an MLP in every layer and separate projections."""

from __future__ import annotations

from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.delta_config import read_qwen_mixers
from edgewright.model.delta_weights import take_gated_delta
from edgewright.model.mixers.attention import AttentionSpec
from edgewright.model.mixers.gated_delta import GatedDeltaSpec
from edgewright.model.sizes import read_rms_norm, read_sizes
from edgewright.model.weights import TensorSource, Weights, decoder_weights, take_attention

# A layer that guesses one token more, and what sees.
INERT_TENSORS: tuple[str, ...] = (r"mtp\..*", r"model\.visual\..*")
_PROJECTIONS = {
    "qkv": "in_proj_qkv",
    "gate": "in_proj_z",
    "beta": "in_proj_b",
    "decay": "in_proj_a",
}


def read_config(reader: ConfigReader) -> ModelConfig:
    ignore_unused(reader)
    sizes = read_sizes(reader, max_context=32768, head_dim=256, intermediate=12288, kv_heads=4)
    norm = read_rms_norm(reader)
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = tuple(
        LayerSpec(mixer, feed_forward) for mixer in read_qwen_mixers(reader, sizes, norm)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("qwen3_5_text", layers, norm, tied)


def ignore_unused(reader: ConfigReader) -> None:
    """Of the layer that is left out, of a choice of experts that is not made, and of training."""
    reader.ignore("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mlp_only_layers")
    reader.ignore("mamba_ssm_dtype")


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, norm_offset=True, mixer=take_mixer)


def take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    if isinstance(spec, AttentionSpec):
        return take_attention(source, ours, f"{theirs}.self_attn", spec, norm_offset=True)
    assert isinstance(spec, GatedDeltaSpec)
    theirs = f"{theirs}.linear_attn"
    projections = {
        part: source.take(f"{theirs}.{name}.weight") for part, name in _PROJECTIONS.items()
    }
    return take_gated_delta(source, ours, theirs, spec, projections, norm="norm", output="out_proj")
