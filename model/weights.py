"""Checkpoint tensors under our parameter names: each taken once, every one accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.config import LayerSpec, MixerSpec, MlpSpec, ModelConfig, MoeSpec
from edgewright.model.lazy import (
    LazyTensor,
    concat,
    plus_one,
    reshape,
    rows,
    transpose_last_two,
    widen,
)
from edgewright.model.mixers.attention import AttentionSpec

Weights = dict[str, LazyTensor]

# Buffers that older checkpoints saved although every implementation recomputes them.
_INERT = (r".*rotary_emb\.(inv_freq|cos_cached|sin_cached)", r"(.*\.)?position_ids")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Names:
    """What an architecture calls the parts that every model has. Norms: ours → theirs, where they
    are not the usual ones of the layer's wiring."""

    body: str = "model."
    embedding: str = "embed_tokens"
    norm: str = "norm"
    mixer: str = "self_attn"
    feed_forward: str = "mlp"
    norms: Mapping[str, str] | None = None
    # Part of a name → what some checkpoints have in its place.
    variants: Mapping[str, str] = field(default_factory=dict)


USUAL_NAMES = Names()


class TensorSource:
    """The checkpoint's tensors by the names a causal language model gives them, counting what was
    taken. Some checkpoints hold that model or its body inside another, or the body without a head.
    """

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        is_block_scaled: Callable[[str], bool] = lambda name: False,
        names: Names = USUAL_NAMES,
    ) -> None:
        self.names = names
        self._tensors = tensors
        self._is_block_scaled = is_block_scaled
        self._taken: set[str] = set()
        self._wrapping, self._body = "", names.body
        if self.embedding not in tensors:
            if f"language_model.{self.embedding}" in tensors:
                self._wrapping = "language_model."
            elif self._within(inner := f"{names.body}language_model.") in tensors:
                self._body = inner
            elif self._within("") in tensors:
                self._body = ""

    @property
    def embedding(self) -> str:
        return f"{self.names.body}{self.names.embedding}.weight"

    def _within(self, body: str) -> str:
        return f"{body}{self.names.embedding}.weight"

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self._tensors

    def take(self, name: str) -> LazyTensor:
        stored = self._stored(name)
        if stored not in self._tensors:
            raise CheckpointError(f"tensor {stored} is missing from the checkpoint")
        self._taken.add(stored)
        return self._tensors[stored]

    def is_block_scaled(self, name: str) -> bool:
        """Whether it was stored in blocks, which keep the inputs of a product innermost."""
        return self._is_block_scaled(self._stored(name))

    def ignore(self, *names: str) -> None:
        self._taken.update(self._stored(name) for name in names)

    def ignore_under(self, prefix: str) -> None:
        """Every tensor of a part that this model does without."""
        stored = self._stored(prefix)
        self._taken.update(name for name in self._tensors if name.startswith(stored))

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

    def _stored(self, name: str) -> str:
        if name.startswith(self.names.body):
            name = self._body + name.removeprefix(self.names.body)
        name = self._wrapping + name
        if name not in self._tensors:
            for usual, variant in self.names.variants.items():
                if (other := name.replace(usual, variant)) in self._tensors:
                    return other
        return name


def settle_head(source: TensorSource, config: ModelConfig) -> ModelConfig:
    """A config that ties the head to the embedding is overruled by a checkpoint that holds a
    different one, as it is in transformers."""
    if not config.tied_head or source.embedding not in source or _HEAD not in source:
        return config
    embedding, head = widen(source.take(source.embedding)), widen(source.take(_HEAD))
    pairs = zip_longest(embedding.pieces(), head.pieces(), fillvalue=memoryview(b""))
    return config if all(a == b for a, b in pairs) else replace(config, tied_head=False)


def take_frame(source: TensorSource, config: ModelConfig, norm_offset: bool = False) -> Weights:
    """Embedding, final norm and head."""
    # A tied pair is stored once, nearly always as the embedding.
    names = source.names
    alone = config.tied_head and source.embedding not in source and _HEAD in source
    weights = {
        "embedding.weight": source.take(_HEAD if alone else source.embedding),
        "norm.weight": take_norm(source, f"{names.body}{names.norm}.weight", norm_offset),
    }
    if config.tied_head:
        source.ignore(_HEAD)
    else:
        weights["head.weight"] = source.take(_HEAD)
    return weights


def take_norm(source: TensorSource, name: str, offset: bool = False) -> LazyTensor:
    tensor = source.take(name)
    return plus_one(tensor) if offset else widen(tensor)


def take_linear(source: TensorSource, ours: str, theirs: str, bias: bool) -> Weights:
    weights = {f"{ours}.weight": source.take(f"{theirs}.weight")}
    if bias:
        weights[f"{ours}.bias"] = widen(source.take(f"{theirs}.bias"))
    return weights


def take_convolution(source: TensorSource, ours: str, theirs: str, bias: bool) -> Weights:
    weights = {f"{ours}.weight": by_tap(source.take(f"{theirs}.weight"))}
    if bias:
        weights[f"{ours}.bias"] = widen(source.take(f"{theirs}.bias"))
    return weights


def by_tap(stored: LazyTensor) -> LazyTensor:
    """A convolution is published as [channels, 1, taps], ours is [taps, channels]."""
    by_channel = reshape(stored, (stored.shape[0], stored.shape[-1])) if stored.shape else stored
    return widen(transpose_last_two(by_channel))


def take_attention(
    source: TensorSource,
    ours: str,
    theirs: str,
    spec: AttentionSpec,
    norm_offset: bool = False,
    names: Mapping[str, str] | None = None,
) -> Weights:
    """`names`: the usual name of a part → what it is called here, where that differs."""

    def published(usual: str) -> str:
        return f"{theirs}.{(names or {}).get(usual, usual)}"

    weights = _take_query(source, ours, published("q_proj"), spec)
    for name, short in (("key", "k"), ("value", "v")):
        weights |= take_linear(source, f"{ours}.{name}", published(f"{short}_proj"), spec.qkv_bias)
    weights |= take_linear(source, f"{ours}.output", published("o_proj"), spec.output_bias)
    if spec.qk_norm is not None:
        for name, short in (("query", "q"), ("key", "k")):
            norm = take_norm(source, f"{published(f'{short}_norm')}.weight", norm_offset)
            weights[f"{ours}.{name}_norm.weight"] = norm
    if spec.sinks:
        weights[f"{ours}.sinks"] = widen(source.take(published("sinks")))
    return weights


def _take_query(source: TensorSource, ours: str, theirs: str, spec: AttentionSpec) -> Weights:
    """An output's gate is stored with the query, head by head."""
    weights = take_linear(source, f"{ours}.query", theirs, spec.qkv_bias)
    if not spec.output_gate:
        return weights
    both: Weights = {}
    for name, fused in weights.items():
        query, gate = split_groups(fused, spec.heads, (spec.head_dim, spec.head_dim))
        both |= {name: query, name.replace(f"{ours}.query", f"{ours}.gate"): gate}
    return both


_MLP_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def take_mlp(
    source: TensorSource,
    ours: str,
    theirs: str,
    spec: MlpSpec,
    parts: Mapping[str, str] = _MLP_PARTS,
) -> Weights:
    """`parts`: our gate, up and down → what they are called."""
    weights: Weights = {}
    for part, name in parts.items():
        if spec.gated or part != "gate":
            weights |= take_linear(source, f"{ours}.{part}", f"{theirs}.{name}", spec.bias)
    return weights


def split_rows(fused: LazyTensor, sizes: Sequence[int]) -> list[LazyTensor]:
    """A tensor of several stacked along its rows, taken apart."""
    if not fused.shape or fused.shape[0] != sum(sizes):
        raise CheckpointError(
            f"tensor {fused.name} has shape {list(fused.shape)},"
            f" config.json requires {sum(sizes)} rows"
        )
    starts = accumulate(sizes, initial=0)
    return [rows(fused, start, start + size) for start, size in zip(starts, sizes, strict=False)]


def split_groups(fused: LazyTensor, groups: int, sizes: Sequence[int]) -> list[LazyTensor]:
    """Rows stacked group by group, each group holding all the parts, taken apart."""
    by_group = [split_rows(group, sizes) for group in split_rows(fused, (sum(sizes),) * groups)]
    return [concat(part) for part in zip(*by_group, strict=True)]


# Our norm → the published name, for each wiring.
_LAYER_NORMS: dict[str, dict[str, str]] = {
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
    "bare": {},
}


def take_layer_norms(
    source: TensorSource, ours: str, theirs: str, spec: LayerSpec, norm_offset: bool = False
) -> Weights:
    """Those of the halves that the layer has."""
    named = source.names.norms or _LAYER_NORMS[spec.wiring]
    halves = {"mixer": spec.mixer, "feed_forward": spec.feed_forward}
    absent = tuple(half for half, made in halves.items() if made is None)
    return {
        f"{ours}.{name}.weight": take_norm(source, f"{theirs}.{published}.weight", norm_offset)
        for name, published in named.items()
        if not (absent and name.startswith(absent))
    }


def ignore_layers_ahead(source: TensorSource, config: ModelConfig) -> None:
    """Layers stored after the last, each of which guesses one token more from the one before."""
    index = len(config.layers)
    while f"{source.names.body}layers.{index}.eh_proj.weight" in source:
        source.ignore_under(f"{source.names.body}layers.{index}.")
        index += 1


# Each is given the source, our prefix, the published prefix and the spec. A mixer's and experts'
# published prefix is the layer's, an MLP's its own.
TakeMixer = Callable[[TensorSource, str, str, MixerSpec], Weights]
TakeMlp = Callable[[TensorSource, str, str, MlpSpec], Weights]
TakeExperts = Callable[[TensorSource, str, str, MoeSpec], Weights]


def decoder_weights(
    source: TensorSource,
    config: ModelConfig,
    *,
    norm_offset: bool = False,
    mixer: TakeMixer | None = None,
    mlp: TakeMlp = take_mlp,
    experts: TakeExperts | None = None,
) -> Weights:
    """Everything under the usual names; an architecture gives its own reading of what differs.
    `norm_offset`: the stored norms' weights are one less than what multiplies."""
    names = source.names
    weights = take_frame(source, config, norm_offset)
    for index, layer in enumerate(config.layers):
        ours, theirs = f"layers.{index}", f"{names.body}layers.{index}"
        weights |= take_layer_norms(source, ours, theirs, layer, norm_offset)
        if mixer is not None and layer.mixer is not None:
            weights |= mixer(source, f"{ours}.mixer", theirs, layer.mixer)
        elif isinstance(layer.mixer, AttentionSpec):
            published = f"{theirs}.{names.mixer}"
            weights |= take_attention(source, f"{ours}.mixer", published, layer.mixer, norm_offset)
        if isinstance(layer.feed_forward, MlpSpec):
            published = f"{theirs}.{names.feed_forward}"
            weights |= mlp(source, f"{ours}.feed_forward", published, layer.feed_forward)
        elif layer.feed_forward is not None:
            assert experts is not None, "an architecture with experts says where they are"
            weights |= experts(source, f"{ours}.feed_forward", theirs, layer.feed_forward)
    return weights
