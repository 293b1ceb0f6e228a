"""Checkpoints under the names that transformers has in memory, or once had: the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgewright.model.loading import LazyModel, open_model
from tests import model_zoo as zoo


def _assert_same(found: LazyModel, expected: LazyModel) -> None:
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(found.weights[name].read(), tensor.read(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["deepseek-v3", "jamba", "kimi-linear", "nemotron-h-experts", "olmo-hybrid"]
)
def test_names_in_memory(name: str, tmp_path: Path) -> None:
    published = zoo.write_checkpoint(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(published)
    model.save_pretrained(tmp_path / "memory", save_original_format=False)
    _assert_same(open_model(tmp_path / "memory"), open_model(published))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_the_first_name_of_mambas_embedding(name: str, tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint(name, tmp_path)
    expected = {name: tensor.read() for name, tensor in open_model(checkpoint).weights.items()}
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, file)
    found = open_model(checkpoint)
    assert all(torch.equal(found.weights[name].read(), value) for name, value in expected.items())
