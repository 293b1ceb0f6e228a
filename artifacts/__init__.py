"""The package format: a model's graphs, weights, libraries and tokenizer, and what they are."""

from edgewright.artifacts.manifest import (
    Compiled,
    CompiledGraph,
    Evidence,
    FileEntry,
    GenerationDefaults,
    Manifest,
    ModelInfo,
    Provenance,
    StaticSizes,
    Tokenizer,
    Variant,
)
from edgewright.artifacts.package import Package
from edgewright.artifacts.package_writer import Blob, PackageWriter
from edgewright.artifacts.states import StateLayout, StateSpec

__all__ = [
    "Blob",
    "Compiled",
    "CompiledGraph",
    "Evidence",
    "FileEntry",
    "GenerationDefaults",
    "Manifest",
    "ModelInfo",
    "Package",
    "PackageWriter",
    "Provenance",
    "StateLayout",
    "StateSpec",
    "StaticSizes",
    "Tokenizer",
    "Variant",
]
