"""Grouped-query checkpoints become latent ones: exactly, where nothing has to be left out, and with
less lost by what was measured on text than by the weights alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from edgewright.artifacts.errors import CheckpointError, ConversionError
from edgewright.cli.convert import command
from edgewright.model.conversion.convert import Conversion, Outcome, convert_to_latent
from edgewright.model.loading import open_model
from edgewright.model.training.corpus import Corpus, read_corpus
from edgewright.model.training.vocabulary import save_tokenizer, train_tokenizer
from tests import model_zoo as zoo
from tests.model.running import run_in_chunks, split

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama"
DOCUMENTS = tuple(
    f"def add_{i}(first, second):\n    # {i * i} → {i}\n    return first + second + {i}\n" * 4
    for i in range(30)
)
CORPUS = Corpus(DOCUMENTS[:-3], DOCUMENTS[-3:])
ALL = Conversion(rank=1, calibration_tokens=512, evaluation_tokens=256, row_tokens=32)


def quiet(stage: str, done: int, total: int) -> None:
    pass


def written(name: str, folder: Path) -> Path:
    path = zoo.write_checkpoint(name, folder)
    if not (path / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(CORPUS.train, 300), path, 512)
    return path


def convert(checkpoint: Path, out: Path, conversion: Conversion) -> Outcome:
    return convert_to_latent(checkpoint, out, CORPUS, conversion, quiet)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama-biased-tied",
        "llama-yarn-mscale",
        "mistral-window",
        "qwen2",
        "phi3-partial-tied",
    ],
)
@torch.no_grad()
def test_with_room_for_everything_nothing_changes(name: str, tmp_path: Path) -> None:
    """Every frequency of every head stays rotated, and the latents hold all values."""
    checkpoint = written(name, tmp_path)
    config = open_model(checkpoint).config
    spec = config.layers[0].mixer
    frequencies = len(spec.rope.frequencies)
    rope_dim = 2 * frequencies * spec.kv_heads
    rank = spec.kv_heads * (spec.head_dim + spec.head_dim - 2 * frequencies)
    out = tmp_path / "latent"
    found = convert(checkpoint, out, replace(ALL, rank=rank, rope_dim=rope_dim))
    assert abs(found.rise) < 1e-4
    ids = zoo.prompt(name, 90)
    expected = zoo.reference_logits(checkpoint, ids)
    again = zoo.reference_logits(out, ids)  # of transformers' blocks for latent attention
    assert zoo.error(again, expected) < zoo.TOLERANCE
    decoder = open_model(out).materialise()
    for chunk in (90, 7):
        logits = run_in_chunks(decoder, ids, split(len(ids), chunk))
        assert zoo.error(logits, expected) < zoo.TOLERANCE


def test_a_measured_conversion_loses_less(tmp_path: Path) -> None:
    """The embedded llama at half its cache, beside a decomposition of its weights alone."""
    corpus = read_corpus(["stdlib"])
    half = Conversion(rank=96, calibration_tokens=4096, evaluation_tokens=2048)
    rises = {}
    for calibrated in (True, False):
        out = tmp_path / str(calibrated)
        chosen = replace(half, calibrated=calibrated)
        found = convert_to_latent(EXAMPLE, out, corpus, chosen, quiet)
        assert (found.cache_values_before, found.cache_values_after) == (256, 128)
        layout = open_model(out, cache_dtype="float16").decoder.layout
        assert layout.bytes_per_token == 6 * (96 + 32) * 2
        rises[calibrated] = found.rise
    assert 0 < rises[True] < rises[False] / 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2", "its norms are not those of a llama"),
        ("qwen3", "its queries and keys are normalised"),
        ("mixtral", "its feed-forward half is not a gated MLP"),
        ("llama-longrope", "its rotation depends on the length"),
        ("mamba2", "it has no attention"),
    ],
)
def test_what_cannot_be_converted(name: str, reason: str, tmp_path: Path) -> None:
    checkpoint = written(name, tmp_path)
    with pytest.raises(ConversionError, match=reason):
        convert(checkpoint, tmp_path / "out", ALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 49}, "--rank is 49; with 8 rotated values, 1 to 48 are of use"),
        ({"rope_dim": 7}, "--rope-dim is 7; an even number from 2 to 28 is needed"),
        ({"rope_dim": 30}, "--rope-dim is 30"),
        ({"row_tokens": 400}, "the text has no document of 400 tokens"),
    ],
)
def test_numbers_that_cannot_be(changes: dict[str, int], message: str, tmp_path: Path) -> None:
    checkpoint = written("llama", tmp_path)
    with pytest.raises(ConversionError, match=message):
        convert(checkpoint, tmp_path / "out", replace(ALL, **changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name]


def test_a_conversion_is_measured_on_text(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        convert(checkpoint, tmp_path / "out", ALL)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionError, match="exists already"):
        convert(checkpoint, tmp_path / "out", ALL)


def test_the_command(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for index, text in enumerate(DOCUMENTS):
        (source / f"{index}.py").write_text(text * 8, encoding="utf-8")
    checkpoint, out = written("llama", tmp_path), tmp_path / "out"
    words = [str(checkpoint), "--to", "mla", "--rank", "20", "--text", str(source), "-o", str(out)]
    done = CliRunner().invoke(
        command, [*words, "--tokens", "512", "--json"], catch_exceptions=False
    )
    found = json.loads(done.stdout)
    assert found["cache_saved"] == pytest.approx(1 - (20 + 8) / 56)
    assert found["perplexity_rise"] == pytest.approx(
        found["perplexity_after"] / found["perplexity_before"] - 1
    )
    assert (out / "tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()
