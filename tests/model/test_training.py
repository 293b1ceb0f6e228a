"""A few steps on a tiny text: the loss falls, a killed run ends at the same bytes, and transformers
reads what is published and computes the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgewright.export.validate.latent_hybrid  # noqa: F401 - transformers then knows the type
from edgewright.artifacts.errors import TrainingError
from edgewright.cli.train import command
from edgewright.model.loading import open_model
from edgewright.model.training.batches import Batches
from edgewright.model.training.corpus import STDLIB_HELD_OUT, Corpus, read_corpus
from edgewright.model.training.recipe import Architecture, Recipe
from edgewright.model.training.trainer import RECORD_FILE, STATE_FILE, Step, Trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny"
DOCUMENTS = tuple(
    f"def add_{i}(first, second):\n    # naïve → {i}\n    return first + second + {i}\n" * 4
    for i in range(30)
)
CORPUS = Corpus(DOCUMENTS[:-3], DOCUMENTS[-3:])
RECIPE = Recipe(
    steps=30,
    vocabulary=300,
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate=48,
    context=32,
    batch_rows=4,
)


class Killed(Exception):
    pass


def ignore(_: Step) -> None:
    pass


def killed_after(count: int) -> Callable[[Step], None]:
    def report(step: Step) -> None:
        if step.step == count:
            raise Killed

    return report


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("training") / "tiny"
    Trainer.start(out, RECIPE, CORPUS).run(ignore)
    return out


@pytest.fixture(scope="module", params=["latent_hybrid", "llama"])
def each_trained(
    request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == RECIPE.architecture:
        return trained
    out = tmp_path_factory.mktemp("training") / request.param
    Trainer.start(out, replace(RECIPE, architecture=request.param), CORPUS).run(ignore)
    return out


def test_the_loss_falls(trained: Path) -> None:
    record = json.loads((trained / RECORD_FILE).read_text())
    assert record["steps"] == RECIPE.steps
    assert record["tokens_seen"] == 30 * 4 * 32
    assert record["held_out_loss"] < 4.0  # of ln 300 = 5.7 for one that knows nothing
    assert not (trained / STATE_FILE).exists()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_killed_run_ends_at_the_same_bytes(precision: str, tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=6, precision=precision)
    Trainer.start(tmp_path / "whole", recipe, CORPUS).run(ignore)
    with pytest.raises(Killed):
        Trainer.start(tmp_path / "killed", recipe, CORPUS).run(killed_after(3), save_seconds=0)
    open_model(tmp_path / "killed").materialise()  # usable as it was left
    resumed = Trainer.resume(tmp_path / "killed", CORPUS)
    assert resumed.history.step == 3
    resumed.run(ignore)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == whole, name


def test_the_seed_decides(trained: Path, tmp_path: Path) -> None:
    Trainer.start(tmp_path / "same", RECIPE, CORPUS).run(ignore)
    Trainer.start(tmp_path / "other", replace(RECIPE, seed=1), CORPUS).run(ignore)
    first, same, other = (
        (path / "model.safetensors").read_bytes()
        for path in (trained, tmp_path / "same", tmp_path / "other")
    )
    assert first == same != other


@torch.no_grad()
def test_transformers_computes_the_same_logits(each_trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(each_trained)
    theirs = AutoModelForCausalLM.from_pretrained(each_trained, dtype=torch.float32)
    ids = torch.tensor([tokenizer(DOCUMENTS[0])["input_ids"][: RECIPE.context]])
    expected = theirs(ids).logits

    decoder = open_model(each_trained).materialise()
    batch, seq = ids.shape
    states = [torch.zeros(spec.resolve(batch, seq), dtype=torch.float32) for spec in decoder.layout]
    steps = torch.arange(seq)[None]
    start = torch.zeros(batch, dtype=torch.int64)
    ours, _ = decoder(ids, start, torch.full_like(start, seq), steps, states)
    assert (ours - expected).abs().max() < 1e-4 * max(1.0, float(expected.std()))


@pytest.mark.parametrize("architecture", ["latent_hybrid", "llama"])
@pytest.mark.parametrize("context", [32, 300])
def test_the_loss_is_the_published_model_s_own(
    context: int, architecture: Architecture, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, context=context, steps=2, architecture=architecture)
    trainer = Trainer.start(tmp_path / "out", recipe, CORPUS)
    trainer.run(ignore)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    rows = trainer._held_out
    with torch.no_grad():
        logits = theirs(rows[:, :-1]).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())
    assert trainer.held_out_loss() == pytest.approx(float(expected), abs=1e-5)


# Our layer's parameters → transformers', in the layers that each architecture has.
_GRADIENTS: dict[Architecture, dict[str, str]] = {
    "llama": {
        "0.mixer.query.weight": "0.self_attn.q_proj.weight",
        "0.mixer.key.weight": "0.self_attn.k_proj.weight",
        "0.mixer.value.weight": "0.self_attn.v_proj.weight",
        "0.feed_forward.gate.weight": "0.mlp.gate_proj.weight",
    },
    "latent_hybrid": {
        "0.mixer.input.weight": "0.mamba.in_proj.weight",
        "0.mixer.parametrizations.decay.original": "0.mamba.A_log",
        "0.mixer.step_bias": "0.mamba.dt_bias",
        "0.mixer.norm.weight": "0.mamba.norm.weight",
        "1.mixer.query.weight": "1.self_attn.q_proj.weight",
        "1.mixer.latent.weight": "1.self_attn.kv_a_proj_with_mqa.weight",
        "1.mixer.up": "1.self_attn.kv_b_proj.weight",
    },
}


@pytest.mark.parametrize("architecture", list(_GRADIENTS))
def test_gradients_are_those_of_plain_torch(architecture: Architecture, tmp_path: Path) -> None:
    """The blocked attention and the joined head, against the published model's autograd."""
    recipe = replace(RECIPE, context=300, steps=2, batch_rows=2, architecture=architecture)
    trainer = Trainer.start(tmp_path / "out", recipe, CORPUS)
    trainer.run(ignore)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    inputs, targets = trainer._batches.batch(0)
    logits = theirs(inputs).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, targets.flatten()).backward()
    trainer._loss(inputs, targets).backward()
    embedding = theirs.model.embed_tokens.weight.grad
    torch.testing.assert_close(
        trainer.decoder.embedding.weight.grad, embedding, rtol=1e-3, atol=1e-6
    )
    for name, reference in _GRADIENTS[architecture].items():
        found = trainer.decoder.layers.get_parameter(name).grad
        expected = theirs.model.layers.get_parameter(reference).grad
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_the_tokenizer_gives_the_text_back(trained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for text in (DOCUMENTS[0], "\tπ ≠ 3\r\n  été 😀", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == 0


def test_every_epoch_takes_every_row_once_in_another_order() -> None:
    documents = [torch.arange(i * 10, i * 10 + 10, dtype=torch.int32) for i in range(13)]
    batches = Batches(documents, rows=batches_per_epoch(documents), context=8, seed=3)
    first, second = batches.batch(0), batches.batch(1)
    for inputs, targets in (first, second):
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert len(set(inputs.flatten().tolist())) == inputs.numel()
    assert not torch.equal(first[0], second[0])
    assert torch.equal(batches.batch(0)[0], first[0])


def batches_per_epoch(documents: list[torch.Tensor]) -> int:
    return Batches(documents, rows=1, context=8, seed=3).rows_per_epoch


def test_the_standard_library_without_its_tests() -> None:
    corpus = read_corpus(["stdlib"])
    assert len(corpus.held_out) == len(STDLIB_HELD_OUT)
    assert len(corpus.train) > 300
    assert not any("import idlelib" in text for text in corpus.train[:50])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "--hidden 32 over --heads 3"),
        ({"heads": 4, "kv_heads": 3}, "--heads 4 is not a multiple of --kv-heads 3"),
        ({"steps": None}, "give --steps, --hours or both"),
    ],
)
def test_a_recipe_that_cannot_be(changes: dict[str, int | None], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(RECIPE, **changes)  # type: ignore[arg-type]


def test_rates_rise_hold_and_fall() -> None:
    recipe = replace(RECIPE, steps=1000)
    rates = [recipe.rate(recipe.progress(step, 0), step) for step in range(1000)]
    assert 0 < rates[0] < rates[5] < rates[300] == rates[499] == 1.0 > rates[800] > rates[999] > 0


def test_mistakes_are_told(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="exists already"):
        Trainer.start(trained, RECIPE, CORPUS)
    with pytest.raises(TrainingError, match="no run to resume"):
        Trainer.resume(trained, CORPUS)
    with pytest.raises(TrainingError, match="neither a directory, a file"):
        read_corpus([str(tmp_path / "nowhere")])
    (tmp_path / "odd.py").write_bytes(b"x = '\xff'")
    with pytest.raises(TrainingError, match=r"odd\.py is not UTF-8"):
        read_corpus([str(tmp_path)])
    with pytest.raises(TrainingError, match="needs at least"):
        Trainer.start(tmp_path / "out", replace(RECIPE, context=100_000), CORPUS)
    assert not (tmp_path / "out").exists()


def test_a_state_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Trainer.start(tmp_path / "out", RECIPE, CORPUS).run(killed_after(2), save_seconds=0)
    with pytest.raises(TrainingError, match="give the same --text"):
        Trainer.resume(tmp_path / "out", Corpus(CORPUS.train[1:], CORPUS.held_out))
    state = tmp_path / "out" / STATE_FILE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="is not a training state"):
        Trainer.resume(tmp_path / "out", CORPUS)


def test_the_command(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for index, text in enumerate(DOCUMENTS[:5]):
        (source / f"{index}.py").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    shape = "--hidden=32 --layers=1 --heads=2 --kv-heads=1 --intermediate=32 --context=16"
    words = ["--text", str(source), "--out", str(out), "--steps", "2", "--tokenizer-vocab", "280"]
    done = CliRunner().invoke(command, [*words, *shape.split(" ")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "held-out loss" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }


@torch.no_grad()
def test_the_example_is_what_its_record_says() -> None:
    files = {path.name: path.stat().st_size for path in EXAMPLE.iterdir()}
    assert sum(files.values()) <= 12_000_000
    record = json.loads((EXAMPLE / RECORD_FILE).read_text())
    model = AutoModelForCausalLM.from_pretrained(EXAMPLE, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    assert 4_000_000 <= record["parameters"] <= 5_500_000
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE)
    text = "def read(path):\n    with open(path) as file:\n        return file.read()\n"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    assert float(loss) < record["held_out_loss"]
