"""What a decoder is made of, in our words, after an architecture has read its config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from edgewright.model.rope import RopeSpec

if TYPE_CHECKING:
    from edgewright.model.mixer import Mixer

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared", "swiglu_clamped"]
CacheDtype = Literal["float32", "float16", "int8"]
NormKind = Literal["rms", "layer"]
# Where a layer normalises: before each half (llama), before and after (gemma), only after (olmo2),
# once before both halves, which then run side by side (cohere2), or nowhere: what it holds does.
Wiring = Literal["pre", "sandwich", "post", "parallel", "bare"]


@dataclass(frozen=True)
class NormSpec:
    kind: NormKind = "rms"
    eps: float = 1e-6


class MixerSpec(Protocol):
    """What a layer does along the sequence. Each kind is a frozen dataclass in its own file,
    `model/mixers/<name>.py`, and builds its module."""

    @property
    def ropes(self) -> tuple[RopeSpec, ...]: ...

    def with_cache(self, dtype: CacheDtype) -> MixerSpec:
        """The same, keeping what grows with the context in another type."""
        ...

    def build(self, hidden_size: int) -> Mixer: ...


@dataclass(frozen=True)
class MlpSpec:
    intermediate: int
    activation: Activation = "silu"
    bias: bool = False
    gated: bool = True
    gate_scale: float = 1.0  # before the activation
    down_scale: float = 1.0


@dataclass(frozen=True)
class MoeSpec:
    experts: int
    top_k: int
    intermediate: int
    activation: Activation = "silu"  # relu_squared has no gate
    bias: bool = False
    router_bias: bool = False
    # "softmax" and "sigmoid" score all experts and then pick; "softmax_of_chosen" picks and then
    # scores.
    scoring: Literal["softmax", "softmax_of_chosen", "sigmoid"] = "softmax"
    renormalise: bool = True
    renormalise_eps: float = 0.0
    # A learned bias that takes part in the choice alone, not in the weights.
    correction: bool = False
    # Experts in so many groups, of which the best few may be chosen from. A group is as good as its
    # best expert, or as its best two together.
    groups: int = 1
    chosen_groups: int = 1
    group_score: Literal["best", "best_two"] = "best"
    weight_scale: float = 1.0
    # An expert that every token passes, behind a sigmoid gate of its own where there is one.
    shared: MlpSpec | None = None
    shared_gate: bool = False
    # The width that inputs are projected to for the routed experts, and their results from.
    latent: int | None = None
    latent_bias: bool = False
    alpha: float = 1.702
    limit: float = 7.0


FeedForwardSpec = MlpSpec | MoeSpec


@dataclass(frozen=True)
class LayerSpec:
    """Either half may be missing; then so are its norms."""

    mixer: MixerSpec | None
    feed_forward: FeedForwardSpec | None
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
        mixers = (layer.mixer for layer in self.layers if layer.mixer is not None)
        return tuple(dict.fromkeys(rope for mixer in mixers for rope in mixer.ropes))

    def with_cache(self, dtype: CacheDtype) -> ModelConfig:
        """The same model, keeping the keys and values it has seen in another type."""
        layers = (
            layer if layer.mixer is None else replace(layer, mixer=layer.mixer.with_cache(dtype))
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))
