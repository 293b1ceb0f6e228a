"""DeepSeek-V3 and R1: latent attention; after the first layers, experts chosen group by group by a
sigmoid and a learned correction, one shared."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import take_experts
from edgewright.model.latent_config import LatentSizes, read_latent_attention
from edgewright.model.latent_weights import take_latent_attention
from edgewright.model.moe_config import read_grouped_moe
from edgewright.model.sizes import read_rms_norm
from edgewright.model.weights import TensorSource, Weights, decoder_weights, ignore_layers_ahead

INERT_TENSORS: tuple[str, ...] = ()
_EXPERTS = MoeSpec(
    experts=256,
    top_k=8,
    intermediate=2048,
    scoring="sigmoid",
    renormalise_eps=1e-20,
    correction=True,
    groups=8,
    chosen_groups=4,
    group_score="best_two",
    weight_scale=2.5,
)


def read_config(reader: ConfigReader) -> ModelConfig:
    # Training, how experts are spread over machines, and layers that guess tokens further ahead.
    reader.ignore(
        "aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers", "num_mtp_layers"
    )
    # transformers knows one way to choose experts, whatever these say.
    reader.ignore("moe_layer_freq", "scoring_func", "topk_method")
    sizes, mixer = read_latent_attention(
        reader,
        LatentSizes(),
        max_context=4096,
        interleaved=reader.boolean("rope_interleave", True),
    )
    experts = replace(
        read_grouped_moe(reader, _EXPERTS, shared=1),
        renormalise=reader.boolean("norm_topk_prob", True),
    )
    dense = MlpSpec(sizes.intermediate, experts.activation)
    first = reader.integer("first_k_dense_replace", 3, minimum=0)
    layers = tuple(
        LayerSpec(mixer, dense if index < first else experts) for index in range(sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("deepseek_v3", layers, read_rms_norm(reader), tied)


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    ignore_layers_ahead(source, config)
    return decoder_weights(source, config, mixer=take_latent_attention, experts=_take_experts)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec)
