"""The sizes that configs give under the same names, read once and held to what can be computed."""

from __future__ import annotations

from dataclasses import dataclass

from edgewright.model.config import LayerSpec, ModelConfig, NormSpec
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.attention import AttentionSpec

# A config is untrusted: building even an empty decoder costs time and memory for each layer.
_MOST_LAYERS = 4096
_LARGEST = 1 << 24
_MOST_HEADS = 1 << 14


@dataclass(frozen=True)
class Sizes:
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    layers: int
    vocab: int
    max_context: int

    @property
    def attention(self) -> AttentionSpec:
        """Plain attention of these sizes, for an architecture to add its own touches to."""
        return AttentionSpec(self.heads, self.kv_heads, self.head_dim, self.head_dim**-0.5)

    def model(
        self, architecture: str, layers: tuple[LayerSpec, ...], norm: NormSpec, tied_head: bool
    ) -> ModelConfig:
        return ModelConfig(
            architecture, self.vocab, self.hidden, layers, norm, self.max_context, tied_head
        )


def read_sizes(
    reader: ConfigReader,
    *,
    max_context: int,
    head_dim: int | None = None,
    intermediate: int | None = None,
    layers: int | None = None,
    kv_heads: int | None = None,
) -> Sizes:
    """What the family has where its config says nothing; a null for `num_key_value_heads` is one a
    head in every family."""
    hidden = reader.integer("hidden_size", maximum=_LARGEST)
    heads = reader.integer("num_attention_heads", maximum=_MOST_HEADS)
    kv_heads = reader.integer_or_null("num_key_value_heads", kv_heads) or heads
    if heads % kv_heads:
        raise reader.error(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    if head_dim is None and "head_dim" not in reader and hidden % heads:
        raise reader.error(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads},"
            " and there is no head_dim"
        )
    return Sizes(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.integer("head_dim", head_dim or hidden // heads, maximum=_MOST_HEADS),
        intermediate=reader.integer("intermediate_size", intermediate, maximum=_LARGEST),
        layers=reader.integer("num_hidden_layers", layers, maximum=_MOST_LAYERS),
        vocab=reader.integer("vocab_size", maximum=_LARGEST),
        max_context=reader.integer("max_position_embeddings", max_context),
    )


def read_rms_norm(reader: ConfigReader, eps: float = 1e-6) -> NormSpec:
    return NormSpec("rms", reader.positive("rms_norm_eps", eps))
