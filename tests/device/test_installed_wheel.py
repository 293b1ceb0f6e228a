"""The installed wheel does a device's work, and says which extra brings the rest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgewright.runtime import Session

RunOnDevice = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]
CLI = ("-m", "edgewright.cli")
PROMPT = [5, 17, 300, 2, 41]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgewright.export import export_checkpoint

    folder = tmp_path_factory.mktemp("device")
    config = LlamaConfig(
        vocab_size=307,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "package")
    return folder / "package"


def test_nothing_heavy_is_there(run_on_device: RunOnDevice) -> None:
    script = (
        "from importlib.util import find_spec as f;"
        "print([n for n in ('torch', 'onnx', 'onnxscript', 'transformers', 'ziglang') if f(n)])"
    )
    assert run_on_device(["-c", script]).stdout.strip() == "[]"


def test_it_makes_the_same_tokens(run_on_device: RunOnDevice, package: Path) -> None:
    ids = ",".join(map(str, PROMPT))
    ended = run_on_device([*CLI, "run", str(package), "--tokens", ids, "-n", "12", "--json"])
    assert ended.returncode == 0, ended.stderr
    expected = Session.open(package).generate(PROMPT, max_new_tokens=12)
    assert json.loads(ended.stdout)["tokens"] == expected


def test_it_inspects(run_on_device: RunOnDevice, package: Path) -> None:
    ended = run_on_device([*CLI, "inspect", str(package), "--verify", "--json"])
    assert json.loads(ended.stdout)["architecture"] == "llama"


def test_the_javascript_driver_comes_with_it(run_on_device: RunOnDevice) -> None:
    script = (
        "import edgewright.runtime as r; from pathlib import Path;"
        "print(sorted(p.name for p in (Path(r.__path__[0]) / 'javascript').iterdir()))"
    )
    here = Path(__file__).parents[2] / "runtime/javascript"
    assert run_on_device(["-c", script]).stdout.strip() == str(
        sorted(path.name for path in here.iterdir())
    )


@pytest.mark.parametrize("command", ["export", "inspect"])
def test_what_needs_torch_names_its_extra(
    run_on_device: RunOnDevice, package: Path, command: str
) -> None:
    checkpoint = package.with_name("checkpoint")
    rest = ["-o", "never"] if command == "export" else []
    ended = run_on_device([*CLI, command, str(checkpoint), *rest])
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: ")
    assert "pip install 'edgewright[export]'" in ended.stderr


def test_every_command_explains_itself(run_on_device: RunOnDevice) -> None:
    page = run_on_device([*CLI, "--help"]).stdout
    rows = [line.split() for line in page.splitlines() if line.startswith("  ")]
    commands = {row[0] for row in rows if row} & {"export", "validate", "inspect", "run", "bench"}
    assert len(commands) == 5
    for command in commands:
        assert run_on_device([*CLI, command, "--help"]).returncode == 0
