"""Qwen3.5 as published, with eyes: its text decoder is what is exported, as transformers'
AutoModelForCausalLM loads it."""

from __future__ import annotations

from collections.abc import Callable

from edgewright.model.architectures import qwen3_5_text
from edgewright.model.config import ModelConfig
from edgewright.model.config_reader import ConfigReader

INERT_TENSORS = qwen3_5_text.INERT_TENSORS
weights = qwen3_5_text.weights


def read_config(reader: ConfigReader) -> ModelConfig:
    return read_text(reader, "qwen3_5_text", qwen3_5_text.read_config)


def read_text(
    reader: ConfigReader, kind: str, read: Callable[[ConfigReader], ModelConfig]
) -> ModelConfig:
    """The section of the text decoder, which is of this `model_type`."""
    reader.ignore("vision_config", "image_token_id", "video_token_id")
    # Whether the head is tied is said by the text's own section.
    reader.ignore("vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")
    text = reader.section("text_config")
    if text is None:
        raise reader.error("'text_config' is missing")
    text.require("model_type", kind)
    config = read(text)
    text.finish()
    return config
