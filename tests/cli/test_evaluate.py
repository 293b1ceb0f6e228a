"""`edgewright evaluate` beside figures that transformers and torch give by another way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

Edgewright = Callable[..., Result]

TEXT = (
    "What has been read is forgotten window by window; what is predicted counts once.\n"
    "Numbers such as 3.1 and 0.05, brackets (and more of them), and: an end?\n"
) * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def other_checkpoint(checkpoint: Path) -> Path:
    """The same model, a little disturbed, as quantising would."""
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    folder = checkpoint.with_name("disturbed")
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    return folder


@dataclass(frozen=True)
class Figures:
    loss: float
    other_loss: float
    kl: float
    top1: float


def figures(checkpoint: Path, other: Path, window: int, overlap: int, limit: int | None) -> Figures:
    """Token by token: each is predicted from all that its window has before it."""
    ids = AutoTokenizer.from_pretrained(checkpoint)(TEXT, return_tensors="pt").input_ids[0]
    ids = ids if limit is None else ids[: limit + 1]
    models = [AutoModelForCausalLM.from_pretrained(path).double() for path in (checkpoint, other)]
    first_of_window, log_p, log_q = 0, [], []
    for position in range(1, len(ids)):
        if position - first_of_window > window:
            first_of_window = position - overlap
        read = ids[None, first_of_window:position]
        with torch.no_grad():
            p, q = (model(read).logits[0, -1].log_softmax(-1) for model in models)
        log_p.append(p)
        log_q.append(q)
    p, q = torch.stack(log_p), torch.stack(log_q)
    return Figures(
        loss=float(functional.nll_loss(p, ids[1:])),
        other_loss=float(functional.nll_loss(q, ids[1:])),
        kl=float(functional.kl_div(p, q, log_target=True, reduction="batchmean")),
        top1=float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    )


@pytest.mark.parametrize(
    ("options", "window", "overlap", "limit"),
    [
        (("--tokens", "70"), 96, 24, 70),
        ((), 96, 24, None),
        (("--window", "31", "--tokens", "190"), 31, 7, 190),
        (("--window", "3", "--tokens", "20"), 3, 1, 20),
    ],
    ids=["one window", "the context", "a prime window", "a tiny window"],
)
def test_figures_are_those_of_transformers(
    edgewright: Edgewright,
    package: Path,
    checkpoint: Path,
    other_checkpoint: Path,
    text: Path,
    options: tuple[str, ...],
    window: int,
    overlap: int,
    limit: int | None,
) -> None:
    ended = edgewright(
        "evaluate", package, "--text", text, "--against", other_checkpoint, "--json", *options
    )
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    against = found["against"]
    expected = figures(checkpoint, other_checkpoint, window, overlap, limit)
    assert found["tokens"] == (limit or len(TEXT) - 1)
    assert (found["window"], found["overlap"], found["text"]) == (window, overlap, "text.txt")
    assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(torch.tensor(expected.loss).exp().item(), rel=1e-4)
    assert against["loss"] == pytest.approx(expected.other_loss, rel=1e-5)
    assert against["kl"] == pytest.approx(expected.kl, rel=1e-4)
    assert against["top1_agreement"] == pytest.approx(expected.top1)
    assert against["kl"] > 1e-3, "the models are too alike to tell anything"


def test_its_own_checkpoint_is_no_distance_away(
    edgewright: Edgewright, package: Path, checkpoint: Path, text: Path
) -> None:
    ended = edgewright("evaluate", package, "--text", text, "--against", checkpoint, "--json")
    against = json.loads(ended.stdout)["against"]
    assert against["reference"].startswith("transformers")
    assert abs(against["kl"]) < 1e-8
    assert against["top1_agreement"] == 1


def test_a_package_is_a_reference_too(
    edgewright: Edgewright, package: Path, other_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert edgewright("export", other_checkpoint, "--output", other).exit_code == 0
    by = [
        json.loads(
            edgewright("evaluate", package, "--text", text, "--against", each, "--json").stdout
        )["against"]
        for each in (other, other_checkpoint)
    ]
    assert by[0].pop("reference") == "package other"
    assert by[1].pop("reference").startswith("transformers")
    assert by[0] == pytest.approx(by[1], rel=1e-4)


def test_a_table_for_a_person(
    edgewright: Edgewright, package: Path, checkpoint: Path, text: Path
) -> None:
    ended = edgewright("evaluate", package, "--text", text, "--against", checkpoint)
    for word in ("perplexity", "KL from it", "same likeliest token  100.00%", "overlap by 24"):
        assert word in ended.stdout
    assert "KL" not in edgewright("evaluate", package, "--text", text).stdout


def test_a_device_needs_no_torch(package: Path, text: Path) -> None:
    """The package alone, and beside another one."""
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'transformers', 'safetensors'): sys.modules[name] = None\n"
        "from edgewright.cli import main\n"
        f"main(['evaluate', {str(package)!r}, '--text', {str(text)!r}, '--tokens', '20',"
        f" '--against', {str(package)!r}])\n"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "perplexity" in ended.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "text.txt is empty"),
        (b" \n\t\n", "text.txt is empty"),
        (b"PK\x03\x04 \x00\x01", "text.txt is binary (byte 5 is zero)"),
        (b"caf\xe9", "text.txt is not UTF-8 text"),
        (b"a", "1 tokens; at least 2 are required"),
    ],
    ids=["empty", "blank", "binary", "latin-1", "too short"],
)
def test_no_text_is_one_line(
    edgewright: Edgewright, package: Path, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    ended = edgewright("evaluate", package, "--text", path)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_what_does_not_fit_is_one_line(
    edgewright: Edgewright, package: Path, text: Path, tmp_path: Path
) -> None:
    for arguments, said in (
        (("--text", text, "--window", "97"), "context holds 96"),
        (("--text", tmp_path / "none.txt"), "none.txt: No such file"),
        (("--text", tmp_path), "Is a directory"),
        (("--text", text, "--against", tmp_path / "none"), "none"),
    ):
        ended = edgewright("evaluate", package, *arguments)
        assert (ended.exit_code, ended.stdout) == (1, ""), arguments
        assert said in ended.stderr
        assert ended.stderr.count("\n") == 1
