"""Every architecture's torch decoder against transformers' own modelling code, one tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewright.model.architectures import known_architectures
from edgewright.model.loading import open_model
from tests import model_zoo as zoo
from tests.model.running import run_in_chunks, split
from tests.random_model import DtypeName

# Prompt length and the tokens of each call: at once, one by one, and in sevens.
SCHEDULES = [(1, 1), (17, 17), (300, 300), (17, 1), (40, 7), (150, 75)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_logits_equal_transformers(name: str, checkpoints: Path) -> None:
    path = zoo.write_checkpoint(name, checkpoints)
    decoder = open_model(path).materialise()
    errors: dict[tuple[int, int], float] = {}
    for length, chunk in SCHEDULES:
        ids, chunks = zoo.prompt(name, length), split(length, chunk)
        expected = zoo.expected_logits(name, path, ids, chunks)
        errors[length, chunk] = zoo.error(run_in_chunks(decoder, ids, chunks), expected)
    assert max(errors.values()) <= zoo.TOLERANCE, errors


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    ["llama-biased-tied", "gpt-oss", "phi3", "gemma2", "deepseek-v3", "jamba", "mamba2-limited"],
)
def test_half_precision_weights_compute_in_float32(
    name: str, dtype: DtypeName, checkpoints: Path
) -> None:
    path = zoo.write_checkpoint(name, checkpoints, dtype)
    model = open_model(path)
    assert model.weight_dtypes == (dtype,)
    decoder = model.materialise()
    assert dtype in str(decoder.embedding.weight.dtype)
    ids = zoo.prompt(name, 40)
    found = run_in_chunks(decoder, ids, [40])
    assert zoo.error(found, zoo.reference_logits(path, ids)) <= zoo.TOLERANCE


def test_the_zoo_has_every_architecture() -> None:
    assert {entry.model_type for entry in zoo.ENTRIES.values()} == set(known_architectures())
