"""The models that parity suites share: a name in, a small random checkpoint and its logits out.

transformers writes the checkpoints and computes the logits; nothing here comes from our own model.
The table itself needs neither torch nor transformers.

dynamic and longrope rotations depend on how long the context is when a token is computed. Past
their original length a token computed earlier differs from one computed later, so transformers'
cached run differs from its own uncached one. Up to `original_length` everything is compared with
the uncached run; past it, with transformers' cached run over the same chunks.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.delta_zoo import DELTA
from tests.hybrid_zoo import HYBRID
from tests.latent_zoo import LATENT
from tests.random_model import DtypeName, save_random_model
from tests.state_space_zoo import STATE_SPACE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

TOLERANCE = 1e-4  # max absolute difference over max(1, std of the logits), for every entry

# Head counts that do not divide nicely, a head_dim that is not hidden / heads, an odd vocabulary.
_BASE: dict[str, Json] = {
    "vocab_size": 1003,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_FIVE: dict[str, Json] = {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 12,
    "tie_word_embeddings": True,
}
_THREE: dict[str, Json] = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
_MOE: dict[str, Json] = {"num_hidden_layers": 2, "intermediate_size": 36}


@dataclass(frozen=True)
class Entry:
    """Keyword arguments of the transformers config, over the base ones."""

    model_type: str
    changes: dict[str, Json] = field(default_factory=dict)
    original_length: int | None = None  # see above; None where the rotation never changes
    base: dict[str, Json] = field(default_factory=lambda: _BASE)

    @property
    def config(self) -> dict[str, Json]:
        return {**self.base, **self.changes}


def _rope(kind: str, theta: float = 10000.0, **numbers: Json) -> Json:
    return {"rope_type": kind, "rope_theta": theta, **numbers}


def _types(pattern: str) -> Json:
    return [{"s": "sliding_attention", "f": "full_attention"}[letter] for letter in pattern]


_LONG: Json = [1.0 + 0.5 * i for i in range(7)]
_LONG_PARTIAL: Json = [1.0 + 0.7 * i for i in range(6)]
_SHORT: Json = [1.0 + 0.05 * i for i in range(7)]

ENTRIES: dict[str, Entry] = {
    "llama": Entry("llama"),
    "llama-biased-tied": Entry("llama", {**_FIVE, "attention_bias": True, "mlp_bias": True}),
    "llama-gelu": Entry("llama", {**_THREE, "hidden_act": "gelu"}),
    "llama-linear": Entry("llama", {"rope_parameters": _rope("linear", factor=4.0)}),
    "llama-dynamic": Entry(
        "llama",
        {"max_position_embeddings": 64, "rope_parameters": _rope("dynamic", factor=2.0)},
        original_length=64,
    ),
    "llama-llama3": Entry(
        "llama",
        {
            **_THREE,
            "rope_parameters": _rope(
                "llama3",
                5e5,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        },
    ),
    "llama-yarn": Entry(
        "llama",
        {"rope_parameters": _rope("yarn", factor=4.0, original_max_position_embeddings=128)},
    ),
    "llama-yarn-mscale": Entry(
        "llama",
        {
            "rope_parameters": _rope(
                "yarn",
                factor=8.0,
                original_max_position_embeddings=64,
                beta_fast=16,
                beta_slow=2,
                mscale=0.707,
                mscale_all_dim=1.0,
            )
        },
    ),
    "llama-longrope": Entry(
        "llama",
        {
            "rope_parameters": _rope(
                "longrope",
                short_factor=_SHORT,
                long_factor=_LONG,
                factor=4.0,
                original_max_position_embeddings=128,
            )
        },
        original_length=128,
    ),
    "mistral": Entry("mistral", {**_THREE, "sliding_window": None}),
    "mistral-window": Entry("mistral", {"sliding_window": 11}),
    "ministral": Entry("ministral", {"sliding_window": 13, "layer_types": _types("fsf")}),
    "mixtral": Entry("mixtral", {**_MOE, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": Entry(
        "mixtral", {**_MOE, **_FIVE, "num_local_experts": 4, "sliding_window": 9}
    ),
    "qwen2": Entry("qwen2", {**_FIVE, "sliding_window": 7}),
    "qwen2-window": Entry(
        "qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
    ),
    "qwen3": Entry("qwen3", {**_FIVE, "head_dim": 18}),
    "qwen3-window": Entry(
        "qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 10,
            "layer_types": _types("sfs"),
            "rope_parameters": _rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=64),
        },
    ),
    "qwen3-moe": Entry(
        "qwen3_moe",
        {
            **_MOE,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 28,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-sparse": Entry(
        "qwen3_moe",
        {
            **_THREE,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 12,
        },
    ),
    "phi3": Entry("phi3", {**_THREE, "sliding_window": 15}),
    "phi3-partial-tied": Entry(
        "phi3",
        {
            "head_dim": 20,  # of which 15 are asked for and 16 turn, with the exponents of 15
            "num_attention_heads": 4,
            "hidden_size": 80,
            "tie_word_embeddings": True,
            "rope_parameters": _rope("default", partial_rotary_factor=0.75),
        },
    ),
    "phi3-longrope": Entry(
        "phi3",
        {
            "head_dim": 16,
            "num_attention_heads": 4,
            "hidden_size": 64,
            "original_max_position_embeddings": 64,
            "rope_parameters": _rope(
                "longrope",
                short_factor=[1.0] * 6,
                long_factor=_LONG_PARTIAL,
                partial_rotary_factor=0.75,
            ),
        },
        original_length=64,
    ),
    "gemma2": Entry(
        "gemma2",
        {
            "num_hidden_layers": 4,
            "sliding_window": 9,
            "rms_norm_eps": 1e-3,
            "query_pre_attn_scalar": 10,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2-plain": Entry(
        "gemma2",
        {
            **_FIVE,
            "sliding_window": 20,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 30,
            "layer_types": _types("ffs"),
        },
    ),
    "gemma3": Entry(
        "gemma3_text",
        {
            **_THREE,
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "rms_norm_eps": 1e-3,
            "query_pre_attn_scalar": 20,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3-scaled": Entry(
        "gemma3_text",
        {
            "sliding_window": 12,
            "query_pre_attn_scalar": 14,
            "layer_types": _types("sfs"),
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                # transformers does not see a `truncate` inside: it truncates all the same.
                "full_attention": _rope(
                    "yarn",
                    1e4,
                    factor=8.0,
                    truncate=False,
                    beta_fast=4.0,
                    original_max_position_embeddings=64,
                ),
                "sliding_attention": _rope("linear", 1e4, factor=8.0),
            },
        },
    ),
    "smollm3": Entry("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "smollm3-window": Entry(
        "smollm3",
        {
            **_THREE,
            "num_hidden_layers": 4,
            "no_rope_layers": [1, 0, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 14,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2": Entry("olmo2"),
    "olmo2-biased": Entry("olmo2", {**_FIVE, "attention_bias": True}),
    "granite": Entry(
        "granite",
        {
            **_THREE,
            "rms_norm_eps": 1e-4,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 1.25,
        },
    ),
    "granite-biased-tied": Entry(
        "granite",
        {
            **_FIVE,
            "attention_bias": True,
            "mlp_bias": True,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.7,
        },
    ),
    "cohere2": Entry(
        "cohere2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 10,
            "logit_scale": 0.75,
            "tie_word_embeddings": True,
        },
    ),
    "cohere2-biased": Entry(
        "cohere2",
        {
            **_THREE,
            "sliding_window": 16,
            "logit_scale": 1.5,
            "attention_bias": True,
            "layer_types": _types("fss"),
            "tie_word_embeddings": False,
        },
    ),
    "gpt-oss": Entry(
        "gpt_oss",
        {
            **_MOE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 10,
            "rope_parameters": _rope(
                "yarn", 150000.0, factor=8.0, truncate=False, original_max_position_embeddings=64
            ),
        },
    ),
    "gpt-oss-unbiased": Entry(
        "gpt_oss",
        {
            **_MOE,
            **_THREE,
            "num_hidden_layers": 3,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 21,
            "attention_bias": False,
            "swiglu_alpha": 1.5,
            "swiglu_limit": 1.0,
            "layer_types": _types("ffs"),
            "rope_parameters": _rope("default", 10000.0),
        },
    ),
}

ENTRIES |= {name: Entry(kind, config) for name, (kind, config) in HYBRID.items()}
ENTRIES |= {name: Entry(*fields) for name, fields in LATENT.items()}
ENTRIES |= {name: Entry(kind, config, base={}) for name, (kind, config) in STATE_SPACE.items()}
ENTRIES |= {
    name: Entry(kind, config, base={} if "text_config" in config else _BASE)
    for name, (kind, config) in DELTA.items()
}


def write_checkpoint(name: str, directory: Path, dtype: DtypeName = "float32") -> Path:
    """The entry's checkpoint under `directory`, written by transformers once."""
    from transformers import AutoConfig

    import edgewright.export.validate.latent_hybrid  # noqa: F401 - transformers then knows the type

    path = directory / f"{name}-{dtype}"
    if not path.exists():
        entry = ENTRIES[name]
        config = AutoConfig.for_model(entry.model_type, **entry.config)
        # Other processes may be after the same one.
        partial = directory / f"{name}-{dtype}.{os.getpid()}"
        save_random_model(config, partial, seed=name, dtype=dtype)
        with contextlib.suppress(OSError):
            partial.rename(path)
    return path


@lru_cache(maxsize=2)
def reference_model(path: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    import edgewright.export.validate.latent_hybrid  # noqa: F401 - transformers then knows the type

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        local_files_only=True,
    )
    return model.eval()


def reference_logits(path: Path, ids: Sequence[int], chunks: Sequence[int] = ()) -> Tensor:
    """transformers' own float32 logits [len(ids), vocab]: one uncached forward, or its cached run
    over chunks of these lengths."""
    import torch
    from transformers import DynamicCache

    model = reference_model(path)
    tokens = torch.tensor([list(ids)])
    with torch.no_grad():
        # A dynamic rotation remembers the longest context it has met until it meets a short one.
        model(tokens[:, :1], use_cache=False)
        if not chunks:
            uncached: Tensor = model(tokens, use_cache=False).logits[0]
            return uncached
        assert sum(chunks) == len(ids)
        cache = DynamicCache(config=model.config)
        parts = [
            model(part, past_key_values=cache, use_cache=True).logits[0]
            for part in tokens.split(list(chunks), dim=1)
        ]
    return torch.cat(parts)


def expected_logits(name: str, path: Path, ids: Sequence[int], chunks: Sequence[int]) -> Tensor:
    """What our run over these chunks must equal: the rule at the top of this file."""
    original = ENTRIES[name].original_length
    if original is not None and len(ids) > original:
        return reference_logits(path, ids, chunks)
    return reference_logits(path, ids)


def prompt(name: str, length: int) -> list[int]:
    """Token ids that differ from entry to entry and never repeat in a pattern."""
    import torch

    seed = zlib.crc32(f"{name} {length}".encode())
    generator = torch.Generator().manual_seed(seed)
    config = ENTRIES[name].config
    text = config.get("text_config", config)
    assert isinstance(text, dict)
    vocab = text["vocab_size"]
    assert isinstance(vocab, int)
    ids: list[int] = torch.randint(3, vocab, (length,), generator=generator).tolist()
    return ids


def error(found: Tensor, expected: Tensor) -> float:
    """The figure TOLERANCE bounds."""
    difference = (found - expected).abs().max()
    return float(difference / expected.std().clamp(min=1.0))
