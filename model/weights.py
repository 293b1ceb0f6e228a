"""Checkpoint tensors under our parameter names: each taken once, every one accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.config import AttentionSpec, LayerSpec, MlpSpec, ModelConfig
from edgewright.model.lazy import LazyTensor, plus_one, widen

Weights = dict[str, LazyTensor]

# Buffers that older checkpoints saved although every implementation recomputes them.
_INERT = (r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)", r".*\.attn\.(bias|masked_bias)")


class TensorSource:
    """The checkpoint's tensors, counting what was taken."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str) -> LazyTensor:
        if name not in self._tensors:
            raise CheckpointError(f"tensor {name} is missing from the checkpoint")
        self._taken.add(name)
        return self._tensors[name]

    def first(self, *names: str) -> LazyTensor:
        """Whichever of several published names is there."""
        for name in names:
            if name in self._tensors:
                return self.take(name)
        raise CheckpointError(f"tensor {' or '.join(names)} is missing from the checkpoint")

    def ignore(self, *names: str) -> None:
        self._taken.update(names)

    def finish(self, inert: Sequence[str] = ()) -> None:
        patterns = [re.compile(pattern) for pattern in (*_INERT, *inert)]
        extra = sorted(
            name
            for name in set(self._tensors) - self._taken
            if not any(pattern.fullmatch(name) for pattern in patterns)
        )
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise CheckpointError(
                f"tensor {extra[0]}{more} is in the checkpoint, but this architecture has no use"
                " for it: the config does not describe these weights"
            )


def take_frame(source: TensorSource, config: ModelConfig, *, norm_offset: bool = False) -> Weights:
    """Embedding, final norm and head, by the names nearly every decoder gives them."""
    weights = {
        "embedding.weight": source.take("model.embed_tokens.weight"),
        "norm.weight": take_norm(source, "model.norm.weight", norm_offset),
    }
    if config.tied_head:
        source.ignore("lm_head.weight")
    else:
        weights["head.weight"] = source.take("lm_head.weight")
        if config.head_bias:
            weights["head.bias"] = widen(source.take("lm_head.bias"))
    return weights


def take_norm(source: TensorSource, name: str, offset: bool = False) -> LazyTensor:
    tensor = source.take(name)
    return plus_one(tensor) if offset else widen(tensor)


def take_linear(source: TensorSource, ours: str, theirs: str, bias: bool) -> Weights:
    weights = {f"{ours}.weight": source.take(f"{theirs}.weight")}
    if bias:
        weights[f"{ours}.bias"] = widen(source.take(f"{theirs}.bias"))
    return weights


def take_attention(
    source: TensorSource, ours: str, theirs: str, spec: AttentionSpec, norm_offset: bool = False
) -> Weights:
    weights: Weights = {}
    for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
        weights |= take_linear(source, f"{ours}.{name}", f"{theirs}.{short}_proj", spec.qkv_bias)
    weights |= take_linear(source, f"{ours}.output", f"{theirs}.o_proj", spec.output_bias)
    if spec.qk_norm is not None:
        for name, short in (("query", "q"), ("key", "k")):
            norm = take_norm(source, f"{theirs}.{short}_norm.weight", norm_offset)
            weights[f"{ours}.{name}_norm.weight"] = norm
    if spec.sinks:
        weights[f"{ours}.sinks"] = widen(source.take(f"{theirs}.sinks"))
    return weights


def take_mlp(source: TensorSource, ours: str, theirs: str, spec: MlpSpec) -> Weights:
    weights: Weights = {}
    for part in ("gate", "up", "down"):
        weights |= take_linear(source, f"{ours}.{part}", f"{theirs}.{part}_proj", spec.bias)
    return weights


# Our norm → the published name, for each wiring; architectures that differ give their own.
LAYER_NORMS: dict[str, dict[str, str]] = {
    "pre": {
        "mixer_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    },
    "post": {
        "mixer_post_norm": "post_attention_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    },
    "sandwich": {
        "mixer_norm": "input_layernorm",
        "mixer_post_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    },
    "parallel": {"mixer_norm": "input_layernorm"},
}


def take_layer_norms(
    source: TensorSource, ours: str, theirs: str, spec: LayerSpec, norm_offset: bool = False
) -> Weights:
    return {
        f"{ours}.{name}.weight": take_norm(source, f"{theirs}.{published}.weight", norm_offset)
        for name, published in LAYER_NORMS[spec.wiring].items()
    }


def dense_weights(
    source: TensorSource, config: ModelConfig, *, norm_offset: bool = False
) -> Weights:
    """Everything of a decoder whose layers are attention and a gated MLP under the usual names."""
    weights = take_frame(source, config, norm_offset=norm_offset)
    for index, layer in enumerate(config.layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        weights |= take_layer_norms(source, ours, theirs, layer, norm_offset)
        weights |= take_attention(
            source, f"{ours}.mixer", f"{theirs}.self_attn", layer.mixer, norm_offset
        )
        if isinstance(layer.feed_forward, MlpSpec):
            weights |= take_mlp(source, f"{ours}.feed_forward", f"{theirs}.mlp", layer.feed_forward)
    return weights
