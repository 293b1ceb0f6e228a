"""Small checkpoints with a tokenizer, their plans, and a little text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgewright.export.exporter import canonical_graph
from edgewright.export.quantize.plan import WeightGroup, plan_of
from edgewright.model.loading import LazyModel, open_model
from edgewright.model.training.vocabulary import save_tokenizer, train_tokenizer
from tests import model_zoo as zoo

Opened = tuple[LazyModel, tuple[WeightGroup, ...]]


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    """An entry of the zoo: its model and the plan of its weights."""
    folder, found = tmp_path_factory.mktemp("zoo"), {}

    def of(name: str) -> Opened:
        if name not in found:
            path = zoo.write_checkpoint(name, folder)
            if not (path / "tokenizer.json").exists():
                save_tokenizer(train_tokenizer(["def main():\n    return 0\n"], 300), path, 512)
            model = open_model(path)
            found[name] = model, plan_of(canonical_graph(model).model.graph, model)
        return found[name]

    return of


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of Python that every small model can be calibrated on."""
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text(Path(shutil.__file__).read_text()[:6000])
    return path


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 1000, (3, 40), generator=torch.Generator().manual_seed(5))
