"""A config.json read key by key: a key that nobody asked for and that is not inert is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgewright.artifacts.errors import ConfigError
from edgewright.artifacts.json_text import Json
from edgewright.model.config import Activation

# Bookkeeping, training and generation settings: none of them changes what a forward pass computes.
# Checkpoints' quantization_config is read with their tensors.
_INERT = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
_experts_implementation _experts_implementation_internal _flash_attn_2_enabled
_name_or_path _num_labels
add_cross_attention architectures assistant_confidence_threshold assistant_lookbehind
attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids begin_suppress_tokens
bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
early_stopping embd_pdrop encoder_no_repeat_ngram_size encoder_repetition_penalty
eos_token_id epsilon_cutoff eta_cutoff experts_implementation
exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range
is_decoder is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id
length_penalty max_length min_length name_or_path no_repeat_ngram_size num_assistant_tokens
num_assistant_tokens_schedule num_beam_groups num_beams num_labels num_return_sequences
output_attentions output_hidden_states output_router_logits output_scores pad_token_id prefix
pretraining_tp problem_type pruned_heads quantization_config remove_invalid_values
repetition_penalty resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef
router_jitter_noise sep_token_id suppress_tokens target_lookbehind task_specific_params
temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
torchscript transformers.js_config transformers_version typical_p unsloth_fixed
unsloth_version use_bfloat16 use_cache
"""
INERT_KEYS = frozenset(_INERT.split())

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
}


class ConfigReader:
    """A missing key takes its default. So does an explicit null, except where null says "none":
    those keys are read with `..._or_null`."""

    def __init__(self, values: Mapping[str, Json], where: str = "config.json") -> None:
        self._values = values
        self._where = where
        self._read: set[str] = set()
        self._spellings: dict[str, str] = {}

    def spell(self, spellings: Mapping[str, str]) -> None:
        """A usual key → what this family calls it. Where only the usual one is there, it counts."""
        self._spellings |= {
            usual: other for usual, other in spellings.items() if other in self._values
        }

    def __contains__(self, key: str) -> bool:
        return self._values.get(self._spellings.get(key, key)) is not None

    def raw(self, key: str, default: Json = None) -> Json:
        key = self._spellings.get(key, key)
        self._read.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def integer(
        self, key: str, default: int | None = None, minimum: int = 1, maximum: int = 1 << 31
    ) -> int:
        value = self._needed(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.wrong(key, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._needed(key, default)
        if not isinstance(value, int | float) or not _is_number(value):
            raise self.wrong(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise self.wrong(key, value, "a number above 0")
        return value

    def integer_or_null(self, key: str, default: int | None) -> int | None:
        """An explicit null switches off what a missing key leaves at its default."""
        if self._is_null(key) or (default is None and key not in self):
            return None
        return self.integer(key, default)

    def positive_or_null(self, key: str, default: float | None) -> float | None:
        if self._is_null(key) or (default is None and key not in self):
            return None
        return self.positive(key, default)

    def _is_null(self, key: str) -> bool:
        key = self._spellings.get(key, key)
        self._read.add(key)
        return key in self._values and self._values[key] is None

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self._needed(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        value = self._needed(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def strings(self, key: str, default: list[str], length: int) -> list[str]:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.wrong(key, value, "a list of strings")
        if len(value) != length:
            raise self.wrong(key, value, f"a list of {length} entries, one for each layer")
        return [str(v) for v in value]

    def integers(self, key: str, default: list[int]) -> list[int]:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(type(v) is int for v in value):
            raise self.wrong(key, value, "a list of whole numbers")
        return [v for v in value if isinstance(v, int)]

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self.raw(key, [])
        if not isinstance(value, list) or not all(_is_number(v) for v in value):
            raise self.wrong(key, value, "a list of numbers")
        return tuple(float(v) for v in value if isinstance(v, int | float))

    def limits(self, key: str) -> tuple[float, float]:
        """The least and the most, which may be infinite, as the word or as transformers saves it;
        without the key there are none above 0."""
        value = self.raw(key, [0.0, math.inf])
        pair = value if isinstance(value, list) and len(value) == 2 else [None, None]
        least, most = pair[0], math.inf if pair[1] == {"__float__": "Infinity"} else pair[1]
        if (
            not isinstance(least, int | float)
            or not isinstance(most, int | float)
            or not _is_number(least)
            or not (_is_number(most) or most == math.inf)
            or not 0 <= least <= most
        ):
            raise self.wrong(key, value, "two numbers, the least and the most")
        return float(least), float(most)

    def activation(self, key: str, default: str) -> Activation:
        value = self.string(key, default)
        if value not in _ACTIVATIONS:
            raise self.wrong(key, value, f"one of {', '.join(sorted(_ACTIVATIONS))}")
        return _ACTIVATIONS[value]

    def require(self, key: str, *allowed: Json) -> None:
        """A key that would change the maths: only values that leave it alone are taken."""
        value = self.raw(key)
        if value is None or any(value == a and _alike(value, a) for a in allowed):
            return
        choices = " or ".join(_shown(a) for a in allowed) or "absent"
        raise self.wrong(key, value, f"{choices} (anything else is not supported)")

    def ignore(self, *keys: str) -> None:
        """Keys that this architecture is known to carry without computing anything from them."""
        self._read.update(keys)

    def section(self, key: str) -> ConfigReader | None:
        """An object's own reader; an empty object counts as absent, as it does to transformers."""
        value = self.raw(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigReader(value, f"{self._where}, {key}")

    def stand_in(self, values: Mapping[str, Json]) -> ConfigReader:
        """A reader of values that are not in the file but stand for a missing section."""
        return ConfigReader(values, self._where)

    def finish(self) -> None:
        unknown = sorted(set(self._values) - self._read - INERT_KEYS)
        unknown = [key for key in unknown if self._values[key] is not None]
        if unknown:
            raise ConfigError(
                f"{self._where}: unknown key {_shown(unknown[0])}"
                f" = {_shown(self._values[unknown[0]])};"
                " it may change the maths, so the model cannot be exported as it stands"
            )

    def wrong(self, key: str, value: Json, required: str) -> ConfigError:
        key = self._spellings.get(key, key)
        return ConfigError(f"{self._where}: '{key}' is {_shown(value)}, required: {required}")

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self._where}: {message}")

    def _needed(self, key: str, default: Json) -> Json:
        value = self.raw(key, default)
        if value is None:
            raise self.error(f"'{self._spellings.get(key, key)}' is missing")
        return value


def _is_number(value: Json) -> bool:
    """A number that float32 holds: JSON has whole numbers of any size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38


def _alike(a: Json, b: Json) -> bool:
    """1 and 1.0 are alike, 1 and true are not."""
    return isinstance(a, bool) == isinstance(b, bool)


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
