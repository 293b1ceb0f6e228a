"""Qwen3.5 as published, with eyes: its text decoder is what is exported, as transformers'
AutoModelForCausalLM loads it."""

from __future__ import annotations

from edgewright.model.architectures import qwen3_5_text
from edgewright.model.config import ModelConfig
from edgewright.model.config_reader import ConfigReader

INERT_TENSORS = qwen3_5_text.INERT_TENSORS
weights = qwen3_5_text.weights


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.ignore("vision_config", "image_token_id", "video_token_id")
    # Whether the head is tied is said by the text's own section.
    reader.ignore("vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")
    text = reader.section("text_config") or reader.stand_in({})
    text.require("model_type", "qwen3_5_text")
    config = qwen3_5_text.read_config(text)
    text.finish()
    return config
