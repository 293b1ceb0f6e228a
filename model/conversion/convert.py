"""A checkpoint with grouped-query attention goes in; one with latent attention, and what the
change costs and saves, comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgewright.artifacts.errors import ConversionError
from edgewright.artifacts.json_text import Json
from edgewright.artifacts.siblings import Sibling, sweep
from edgewright.model.architectures.latent_hybrid import LATENT_ATTENTION
from edgewright.model.checkpoint_writer import write_checkpoint
from edgewright.model.config import LayerSpec, MlpSpec, ModelConfig
from edgewright.model.conversion.latent import LatentProjections, WholeAttention, latent_attention
from edgewright.model.conversion.moments import Moments, mean_loss, measure
from edgewright.model.decoder import Decoder
from edgewright.model.lazy import TORCH_DTYPES, LazyTensor, constant
from edgewright.model.loading import LazyModel, open_model
from edgewright.model.mixers.attention import Attention, AttentionSpec
from edgewright.model.mixers.latent_attention import LatentAttention
from edgewright.model.published_names import published_name
from edgewright.model.token_rows import check_ids, checkpoint_tokenizer
from edgewright.model.training.corpus import Corpus

_PUBLISHED_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "relu_squared": "relu2"}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Conversion:
    """How much of it all is kept, and how the text is measured."""

    rank: int
    rope_dim: int | None = None  # values that stay rotated; none given: half of a head's
    calibration_tokens: int = 16384
    evaluation_tokens: int = 8192
    row_tokens: int = 256
    calibrated: bool = True


@dataclass(frozen=True)
class Outcome:
    rank: int
    rope_dim: int
    cache_values_before: int  # a token and layer
    cache_values_after: int
    perplexity_before: float
    perplexity_after: float
    evaluated_tokens: int

    @property
    def rise(self) -> float:
        return self.perplexity_after / self.perplexity_before - 1


def convert_to_latent(
    checkpoint: Path, out: Path, corpus: Corpus, conversion: Conversion, progress: Progress
) -> Outcome:
    if out.exists():
        raise ConversionError(f"{out} exists already: choose another place")
    model = open_model(checkpoint)
    specs = _convertible(model.config)
    rope_dim = _rope_dim(specs[0], conversion)
    tokenizer = checkpoint_tokenizer(model.checkpoint, "a conversion is measured on text")
    calibration, evaluation = _texts(tokenizer, corpus, conversion, model.config)
    sweep(out)
    sibling = Sibling(out)
    try:
        decoder = model.materialise()
        moments = _moments(decoder, calibration, conversion, progress)
        before = _perplexity(decoder, evaluation, "as it was", progress)
        latents = [
            latent_attention(_whole(layer, spec), found, conversion.rank, rope_dim)
            for layer, spec, found in zip(decoder.layers, specs, moments, strict=True)
        ]
        del decoder
        tensors = _tensors(model, specs, latents)
        settings = _settings(model.config, specs, latents, conversion.rank, rope_dim)
        _keep_bookkeeping(settings, model.checkpoint.config)
        write_checkpoint(sibling.path, settings, tensors, _companions(model))
        after = _perplexity(
            open_model(sibling.path).materialise(), evaluation, "converted", progress
        )
        sibling.move_to(out)
    except BaseException:
        sibling.discard()
        raise
    held = 2 * specs[0].kv_heads * specs[0].head_dim
    kept = conversion.rank + rope_dim
    return Outcome(conversion.rank, rope_dim, held, kept, before, after, evaluation[:, 1:].numel())


def _convertible(config: ModelConfig) -> list[AttentionSpec]:
    """The layers' attention, if it is all of a kind that latents can stand for."""
    specs = [_attention_of(layer, index) for index, layer in enumerate(config.layers)]
    if config.norm.kind != "rms" or config.logit_softcap:
        raise ConversionError(
            f"{config.architecture} cannot be converted: only RMS norms and plain logits can"
        )
    shapes = {(s.heads, s.kv_heads, s.head_dim, s.scale, s.qkv_bias, s.output_bias) for s in specs}
    halves = {(layer.feed_forward, layer.residual_scale) for layer in config.layers}
    if len(shapes) > 1 or len(halves) > 1:
        raise ConversionError(
            f"{config.architecture}: layers of different shapes are not converted"
        )
    return specs


def _attention_of(layer: LayerSpec, index: int) -> AttentionSpec:
    spec = layer.mixer
    reasons = {
        "it has no attention": not isinstance(spec, AttentionSpec),
        "its norms are not those of a llama": layer.wiring != "pre",
        "its feed-forward half is not a gated MLP": not isinstance(layer.feed_forward, MlpSpec)
        or not layer.feed_forward.gated,
    }
    if isinstance(spec, AttentionSpec):
        reasons |= {
            "its queries and keys are normalised": spec.qk_norm is not None,
            "its scores have a soft cap": spec.softcap > 0,
            "its attention has sinks": spec.sinks,
            "its attention has a gate": spec.output_gate,
            "its keys do not rotate": spec.rope is None,
            "its rotation depends on the length": spec.rope is not None
            and spec.rope.kind != "fixed",
        }
    for reason, holds in reasons.items():
        if holds:
            raise ConversionError(f"layer {index} cannot become latent attention: {reason}")
    assert isinstance(spec, AttentionSpec)
    return spec


def _rope_dim(spec: AttentionSpec, conversion: Conversion) -> int:
    pairs = 0 if spec.rope is None else len(spec.rope.frequencies)
    # DeepSeek's own proportion, and near the best on the example at half its cache.
    found = 2 * ((pairs + 1) // 2) if conversion.rope_dim is None else conversion.rope_dim
    most = 2 * pairs * spec.kv_heads
    if found % 2 or not 2 <= found <= most:
        raise ConversionError(f"--rope-dim is {found}; an even number from 2 to {most} is needed")
    still = spec.kv_heads * spec.head_dim - found
    rank = still + spec.kv_heads * spec.head_dim
    if not 1 <= conversion.rank <= rank:
        raise ConversionError(
            f"--rank is {conversion.rank}; with {found} rotated values, 1 to {rank} are of use"
        )
    return found


def _texts(
    tokenizer: Tokenizer, corpus: Corpus, conversion: Conversion, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """Rows of tokens to calibrate with [n, row] and to judge by [n, row + 1]."""
    row = min(conversion.row_tokens, config.max_context)
    calibration = _rows(tokenizer, corpus.train, row, conversion.calibration_tokens)
    evaluation = _rows(tokenizer, corpus.held_out, row + 1, conversion.evaluation_tokens)
    for rows in (calibration, evaluation):
        check_ids(rows, config.vocab_size)
    return calibration, evaluation


def _rows(tokenizer: Tokenizer, documents: tuple[str, ...], row: int, wanted: int) -> Tensor:
    """From the documents' beginnings, in turn, so that a few do not stand for all."""
    rows: list[list[int]] = []
    for text in documents:
        ids = tokenizer.encode(text[: 16 * row]).ids
        rows += [ids[i : i + row] for i in range(0, min(len(ids), 4 * row) - row + 1, row)]
        if len(rows) * row >= wanted * 4:
            break
    if not rows:
        raise ConversionError(f"the text has no document of {row} tokens: give more with --text")
    step = max(1, len(rows) * row // wanted)
    return torch.tensor(rows[::step])


def _moments(
    decoder: Decoder, rows: Tensor, conversion: Conversion, progress: Progress
) -> list[Moments] | list[None]:
    if not conversion.calibrated:
        return [None] * len(decoder.layers)
    return measure(decoder, rows, _advancing(progress, "calibrate", rows.numel()))


def _perplexity(decoder: Decoder, rows: Tensor, stage: str, progress: Progress) -> float:
    return math.exp(mean_loss(decoder, rows, _advancing(progress, stage, rows.numel())))


def _advancing(progress: Progress, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(stage, done, total)

    return advance


def _whole(layer: torch.nn.Module, spec: AttentionSpec) -> WholeAttention:
    mixer = layer.mixer
    assert isinstance(mixer, Attention)

    def rows(part: str, heads: int) -> Tensor:
        linear = getattr(mixer, part)
        bias = torch.zeros(linear.weight.shape[0]) if linear.bias is None else linear.bias
        joined = torch.cat((linear.weight.double(), bias.double()[:, None]), dim=1)
        return joined.view(heads, spec.head_dim, -1)

    return WholeAttention(
        spec,
        rows("query", spec.heads),
        rows("key", spec.kv_heads),
        rows("value", spec.kv_heads),
        mixer.output.weight.double().view(-1, spec.heads, spec.head_dim),
    )


def _tensors(
    model: LazyModel, specs: list[AttentionSpec], latents: list[LatentProjections]
) -> dict[str, LazyTensor]:
    """All the others as they were; the matrices in the type of those that they replace."""
    found = dict(model.parameters)
    for index, (spec, latent) in enumerate(zip(specs, latents, strict=True)):
        prefix = f"layers.{index}.mixer"
        dtype = TORCH_DTYPES[found[f"{prefix}.key.weight"].dtype]
        for part in ("query", "key", "value"):
            del found[f"{prefix}.{part}.weight"]
            found.pop(f"{prefix}.{part}.bias", None)
        made = {"up": latent.up.to(dtype)}
        for part, rows in (("query", latent.query), ("latent", latent.latent)):
            made[f"{part}.weight"] = rows[:, :-1].to(dtype)
            if spec.qkv_bias:
                made[f"{part}.bias"] = rows[:, -1].float()
        for name, tensor in made.items():
            if not tensor.isfinite().all():
                raise ConversionError(f"layer {index}: its {name} does not fit {tensor.dtype}")
            found[f"{prefix}.{name}"] = constant(tensor.contiguous(), name)
    return {published_name(name, LatentAttention): tensor for name, tensor in found.items()}


def _settings(
    config: ModelConfig,
    specs: list[AttentionSpec],
    latents: list[LatentProjections],
    rank: int,
    rope_dim: int,
) -> dict[str, Json]:
    spec, layer = specs[0], config.layers[0]
    assert isinstance(layer.feed_forward, MlpSpec)
    activation = layer.feed_forward.activation
    frequencies: list[Json] = [[*latent.frequencies] for latent in latents]
    windows: list[Json] = [each.window for each in specs]
    return {
        "architectures": ["LatentHybridForCausalLM"],
        "model_type": "latent_hybrid",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": layer.feed_forward.intermediate,
        "num_hidden_layers": len(config.layers),
        "mixer_types": [LATENT_ATTENTION] * len(config.layers),
        "num_attention_heads": spec.heads,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": spec.head_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": spec.head_dim,
        "attention_multiplier": spec.scale,
        "attention_windows": windows,
        "rope_frequencies": frequencies,
        "latent_norm": False,
        "query_bias": spec.qkv_bias,
        "latent_bias": spec.qkv_bias,
        "output_bias": spec.output_bias,
        "hidden_act": _PUBLISHED_ACTIVATIONS.get(activation, activation),
        "mlp_bias": layer.feed_forward.bias,
        "rms_norm_eps": config.norm.eps,
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tied_head,
        "embedding_multiplier": config.embedding_scale,
        "residual_multiplier": layer.residual_scale,
        "logit_multiplier": config.logit_scale,
    }


def _keep_bookkeeping(settings: dict[str, Json], original: dict[str, Json]) -> None:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if key in original:
            settings[key] = original[key]


def _companions(model: LazyModel) -> list[Path]:
    generation = model.checkpoint.path / "generation_config.json"
    return [*model.checkpoint.tokenizer_files, *([generation] if generation.is_file() else [])]
