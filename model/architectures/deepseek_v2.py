"""DeepSeek-V2: latent attention; after the first layers, experts chosen by softmax, some shared."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.expert_weights import take_experts
from edgewright.model.latent_config import LatentSizes, read_latent_attention
from edgewright.model.latent_weights import take_latent_attention
from edgewright.model.moe_config import read_grouped_moe
from edgewright.model.sizes import read_rms_norm
from edgewright.model.weights import TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()
_EXPERTS = MoeSpec(experts=64, top_k=0, intermediate=1407, renormalise=False)


def read_config(reader: ConfigReader) -> ModelConfig:
    # Training, and how experts are spread over machines.
    reader.ignore(
        "aux_loss_alpha", "seq_aux", "ep_size", "num_nextn_predict_layers", "num_mtp_layers"
    )
    # transformers scores by softmax and leaves the weights as they are, whatever these say.
    reader.ignore("moe_layer_freq", "scoring_func", "norm_topk_prob")
    sizes, mixer = read_latent_attention(reader, LatentSizes(), max_context=2048, interleaved=True)
    bias = reader.boolean("mlp_bias", False)
    experts = _read_experts(reader, bias)
    dense = MlpSpec(sizes.intermediate, experts.activation, bias)
    first = reader.integer("first_k_dense_replace", 0, minimum=0)
    layers = tuple(
        LayerSpec(mixer, dense if index < first else experts) for index in range(sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("deepseek_v2", layers, read_rms_norm(reader), tied)


def _read_experts(reader: ConfigReader, bias: bool) -> MoeSpec:
    method = reader.string("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise reader.wrong("topk_method", method, "greedy or group_limited_greedy")
    experts = read_grouped_moe(reader, _EXPERTS, shared=2, shared_bias=bias)
    return replace(experts, groups=1, chosen_groups=1) if method == "greedy" else experts


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=take_latent_attention, experts=_take_experts)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec)
