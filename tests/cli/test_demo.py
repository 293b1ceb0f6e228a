"""`edgewright demo`: the whole way, on any checkpoint; the example itself comes with the clone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgewright.artifacts import Package
from edgewright.cli import demo
from edgewright.runtime import Session

Edgewright = Callable[..., Result]
PROMPTS = ["def read(path):\n", "class Reader"]


@pytest.fixture
def example(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "example"
    shutil.copytree(checkpoint, folder)
    # Prompts and what validation draws must fit the context.
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


def test_it_goes_all_the_way(edgewright: Edgewright, example: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    ended = edgewright("demo", example, "-o", kept)
    assert ended.exit_code == 0, ended.stderr
    assert "64 of 64 tokens equal" in ended.stdout
    assert "kernels for" in ended.stdout
    assert Package.open(kept).manifest.evidence.keys() == {"cpu"}
    text = "".join(Session.open(kept).stream(PROMPTS[1], 48))
    assert f"{PROMPTS[1]}▸{text}".splitlines()[0] in ended.stdout


def test_a_wheel_has_no_example(edgewright: Edgewright, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_EXAMPLE", Path("/not/there"))
    ended = edgewright("demo")
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert "edgewright demo CLONE/examples/tiny" in ended.stderr


@pytest.mark.parametrize("prompts", ["[1]", "{", '"x"'])
def test_prompts_that_are_none(edgewright: Edgewright, example: Path, prompts: str) -> None:
    (example / "prompts.json").write_text(prompts)
    ended = edgewright("demo", example)
    assert (ended.exit_code, ended.stderr.count("\n")) == (1, 1)
    assert "prompts.json" in ended.stderr
