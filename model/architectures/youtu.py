"""Youtu-LLM: latent attention and a gated MLP in every layer."""

from __future__ import annotations

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.latent_config import LatentSizes, read_latent_attention
from edgewright.model.latent_weights import take_latent_attention
from edgewright.model.sizes import read_rms_norm
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()


def read_config(reader: ConfigReader) -> ModelConfig:
    # How its weights were first drawn; and transformers gives the MLP no bias whatever this says.
    reader.ignore("embedding_initializer_range", "mlp_bias")
    sizes, mixer = read_latent_attention(
        reader,
        LatentSizes(),
        max_context=131072,
        interleaved=reader.boolean("rope_interleave", True),
    )
    feed_forward = MlpSpec(sizes.intermediate, reader.activation("hidden_act", "silu"))
    layers = (LayerSpec(mixer, feed_forward),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", True)
    return sizes.model("youtu", layers, read_rms_norm(reader), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=take_latent_attention)
