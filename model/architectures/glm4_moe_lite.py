"""GLM-4.7-Flash: DeepSeek-V3's attention and experts in sizes of its own."""

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
_SIZES = LatentSizes(query_rank=768, nope=192, value=256)
_EXPERTS = MoeSpec(
    experts=64,
    top_k=4,
    intermediate=1536,
    scoring="sigmoid",
    renormalise_eps=1e-20,
    correction=True,
    group_score="best_two",
    weight_scale=1.8,
)


def read_config(reader: ConfigReader) -> ModelConfig:
    # Layers that guess tokens further ahead.
    reader.ignore("num_nextn_predict_layers", "num_mtp_layers")
    # transformers knows one way to choose experts, and places them by mlp_layer_types alone.
    reader.ignore("topk_method", "scoring_func", "first_k_dense_replace")
    interleaved = reader.boolean("rope_interleave", True)
    sizes, mixer = read_latent_attention(
        reader, _SIZES, max_context=202752, interleaved=interleaved
    )
    experts = replace(
        read_grouped_moe(reader, _EXPERTS, shared=1),
        renormalise=reader.boolean("norm_topk_prob", True),
    )
    dense = MlpSpec(sizes.intermediate, experts.activation)
    layers = tuple(
        LayerSpec(mixer, experts if kind == "sparse" else dense)
        for kind in _read_kinds(reader, sizes.layers)
    )
    tied = reader.boolean("tie_word_embeddings", False)
    return sizes.model("glm4_moe_lite", layers, read_rms_norm(reader, 1e-5), tied)


def _read_kinds(reader: ConfigReader, layers: int) -> list[str]:
    usual = ["dense"] + ["sparse"] * (layers - 1)
    kinds = reader.strings("mlp_layer_types", usual, layers)
    for kind in kinds:
        if kind not in ("dense", "sparse"):
            raise reader.wrong("mlp_layer_types", kind, "dense or sparse")
    return kinds


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    ignore_layers_ahead(source, config)
    return decoder_weights(source, config, mixer=take_latent_attention, experts=_take_experts)


def _take_experts(source: TensorSource, ours: str, layer: str, spec: MoeSpec) -> Weights:
    return take_experts(source, ours, f"{layer}.mlp", spec)
