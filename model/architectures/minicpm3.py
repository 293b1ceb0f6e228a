"""MiniCPM3: latent attention, with a multiplier each on embeddings, residuals and logits."""

from __future__ import annotations

import math
from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.latent_config import LatentSizes, read_latent_attention
from edgewright.model.latent_weights import take_latent_attention
from edgewright.model.sizes import read_rms_norm
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()
_SIZES = LatentSizes(rank=256, query_rank=768, nope=64, rope=32, value=None)


def read_config(reader: ConfigReader) -> ModelConfig:
    sizes, mixer = read_latent_attention(reader, _SIZES, max_context=32768, interleaved=False)
    feed_forward = MlpSpec(
        sizes.intermediate,
        reader.activation("hidden_act", "silu"),
        reader.boolean("mlp_bias", False),
    )
    # For both, null means no scaling.
    depth = reader.positive_or_null("scale_depth", 1.4)
    residual = 1.0 if depth is None else depth / math.sqrt(sizes.layers)
    base = reader.positive_or_null("dim_model_base", 256)
    layers = (LayerSpec(mixer, feed_forward, residual_scale=residual),) * sizes.layers
    tied = reader.boolean("tie_word_embeddings", True)
    return replace(
        sizes.model("minicpm3", layers, read_rms_norm(reader, 1e-5), tied),
        embedding_scale=reader.number("scale_emb", 12.0),
        logit_scale=1.0 if base is None else base / sizes.hidden,
    )


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=take_latent_attention)
