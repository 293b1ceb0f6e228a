"""Mamba: layers of selective state spaces alone, without a feed-forward half."""

from __future__ import annotations

from edgewright.model.config import MixerSpec, ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.mixers.selective_scan import SelectiveScanSpec
from edgewright.model.state_space_config import (
    read_hidden_size,
    read_recurrent,
    read_selective_scan,
)
from edgewright.model.state_space_weights import take_selective_scan
from edgewright.model.weights import Names, TensorSource, Weights, decoder_weights

INERT_TENSORS: tuple[str, ...] = ()
NAMES = Names(
    body="backbone.",
    embedding="embeddings",
    norm="norm_f",
    norms={"mixer_norm": "norm"},
    variants={".embeddings.": ".embedding."},  # as the first checkpoints called it
)


def read_config(reader: ConfigReader) -> ModelConfig:
    return read_recurrent(reader, "mamba", read_selective_scan(reader, read_hidden_size(reader)))


def weights(source: TensorSource, config: ModelConfig) -> Weights:
    return decoder_weights(source, config, mixer=_take_mixer)


def _take_mixer(source: TensorSource, ours: str, theirs: str, spec: MixerSpec) -> Weights:
    assert isinstance(spec, SelectiveScanSpec)
    return take_selective_scan(source, ours, f"{theirs}.mixer", spec)
