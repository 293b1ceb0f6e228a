"""The architectures, one file each, named for its model_type: its config and its weights' names."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, cast

from edgewright.artifacts.errors import ConfigError
from edgewright.artifacts.json_text import Json
from edgewright.model.config import ModelConfig
from edgewright.model.config_reader import ConfigReader
from edgewright.model.weights import TensorSource, Weights

_STRETCHING_CONTEXT = 1 << 20


class Architecture(Protocol):
    """What each file in this folder offers."""

    INERT_TENSORS: tuple[str, ...]

    def read_config(self, reader: ConfigReader) -> ModelConfig: ...

    def weights(self, source: TensorSource, config: ModelConfig) -> Weights: ...


def known_architectures() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_architecture(values: Mapping[str, Json]) -> Architecture:
    name = values.get("model_type")
    known = known_architectures()
    if name is None:
        raise ConfigError("config.json: 'model_type' is missing, so this is not a model's config")
    if name not in known:
        raise ConfigError(
            f"config.json: model_type {name!r} is not known; known are: {', '.join(known)}"
        )
    return cast(Architecture, importlib.import_module(f"{__name__}.{name}"))


def load_config(values: Mapping[str, Json]) -> ModelConfig:
    """config.json's values become a ModelConfig, or the error says which key stands in the way."""
    architecture = find_architecture(values)
    reader = ConfigReader(values)
    reader.ignore("model_type")
    config = architecture.read_config(reader)
    reader.finish()
    if any(rope.kind == "dynamic" for rope in config.ropes):
        # max_position_embeddings is only where such a rotation begins to stretch.
        return replace(config, max_context=max(config.max_context, _STRETCHING_CONTEXT))
    return config
