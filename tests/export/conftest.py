"""One small llama, exported once, for the tests of the export room."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewright.artifacts import Package
from edgewright.export import export_checkpoint
from tests import model_zoo as zoo


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.write_checkpoint("llama-biased-tied", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("package") / "llama")
