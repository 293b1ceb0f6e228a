"""What a decoder is made of, in our words, after an architecture has read its config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from edgewright.model.rope import RopeSpec

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "swiglu_clamped"]
NormKind = Literal["rms", "layer"]
# Where a layer normalises: before each half (llama), before and after (gemma), only after (olmo2),
# or once before both halves, which then run side by side (cohere2).
Wiring = Literal["pre", "sandwich", "post", "parallel"]


@dataclass(frozen=True)
class NormSpec:
    kind: NormKind = "rms"
    eps: float = 1e-6


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention and every variant its families need."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    # "head" normalises each head, "full" the whole projection.
    qk_norm: Literal["head", "full"] | None = None
    qk_norm_eps: float = 1e-6
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    cache_dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class MlpSpec:
    intermediate: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class MoeSpec:
    experts: int
    top_k: int
    intermediate: int
    activation: Activation = "silu"
    bias: bool = False
    router_bias: bool = False
    # "softmax" scores all experts and then picks; "softmax_of_chosen" picks and then scores.
    scoring: Literal["softmax", "softmax_of_chosen"] = "softmax"
    renormalise: bool = True
    alpha: float = 1.702
    limit: float = 7.0


MixerSpec = AttentionSpec
FeedForwardSpec = MlpSpec | MoeSpec


@dataclass(frozen=True)
class LayerSpec:
    mixer: MixerSpec
    feed_forward: FeedForwardSpec
    wiring: Wiring = "pre"
    residual_scale: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    max_context: int
    tied_head: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The distinct rotations the layers use, each computed once a call."""
        seen = (layer.mixer.rope for layer in self.layers)
        return tuple(dict.fromkeys(rope for rope in seen if rope is not None))

    def with_cache(self, dtype: Literal["float32", "float16"]) -> ModelConfig:
        """The same model, keeping the keys and values it has seen in another type."""
        layers = (
            replace(layer, mixer=replace(layer.mixer, cache_dtype=dtype)) for layer in self.layers
        )
        return replace(self, layers=tuple(layers))
