"""One small llama, exported once, for the tests of the export room."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from edgewright.artifacts import Package
from edgewright.export import export_checkpoint, trace
from tests import model_zoo as zoo


@pytest.fixture(scope="session", autouse=True)
def remembered_traces() -> Iterator[None]:
    """A dozen models are exported a hundred times, and nearly all of an export is its trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "_translated", lru_cache(maxsize=16)(trace._translated.__wrapped__))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.write_checkpoint("llama-biased-tied", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def package(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export_checkpoint(checkpoint, tmp_path_factory.mktemp("package") / "llama")
