"""Falcon Mamba: mamba, with what writes, reads and paces its states normalised without weights."""

from __future__ import annotations

from dataclasses import replace

from edgewright.model.architectures.mamba import INERT_TENSORS, NAMES, weights
from edgewright.model.config import ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.state_space_config import (
    read_hidden_size,
    read_recurrent,
    read_selective_scan,
)

__all__ = ["INERT_TENSORS", "NAMES", "read_config", "weights"]


def read_config(reader: ConfigReader) -> ModelConfig:
    reader.ignore("use_falcon_mambapy")
    mixer = replace(
        read_selective_scan(reader, read_hidden_size(reader)),
        norms="plain",
        norm_eps=reader.positive("mixer_rms_eps", 1e-6),
    )
    return read_recurrent(reader, "falcon_mamba", mixer)
