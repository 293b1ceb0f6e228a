"""Qwen3.5-MoE as published, with eyes: its text decoder is what is exported."""

from __future__ import annotations

from edgewright.model.architectures import qwen3_5, qwen3_5_moe_text
from edgewright.model.config import ModelConfig
from edgewright.model.config_reader import ConfigReader

INERT_TENSORS = qwen3_5_moe_text.INERT_TENSORS
weights = qwen3_5_moe_text.weights


def read_config(reader: ConfigReader) -> ModelConfig:
    return qwen3_5.read_text(reader, "qwen3_5_moe_text", qwen3_5_moe_text.read_config)
