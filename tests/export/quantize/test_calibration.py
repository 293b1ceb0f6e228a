"""A model that is run a layer at a time is the same model, and shows what its weights see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgewright.export.quantize.observe import Hessians
from edgewright.export.quantize.sensitivity import measure
from edgewright.export.quantize.stream import LayerStream
from edgewright.export.quantize.tune import run

# Attention, experts, latents and experts, both state spaces, and a block that layers share.
ARCHITECTURES = (
    "llama-biased-tied",
    "qwen3-moe",
    "gpt-oss",
    "deepseek-v3",
    "bamba",
    "mamba2",
    "zamba2",
    "latent-hybrid",
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layer_by_layer_equals_a_whole_forward(
    name: str, opened: Callable, ids: Tensor, tmp_path: Path
) -> None:
    model, _ = opened(name)
    whole = LayerStream(model)
    whole.hold()
    with torch.no_grad():
        expected = run(whole.decoder, ids, {})
        stream = LayerStream(model)
        with stream.loaded("embedding."):
            x = embedded = stream.embed(ids)
        for index in range(len(stream)):
            with stream.loaded(f"layers.{index}."):
                x = stream.run_layer(index, x, embedded)
        parts = ("norm.", "embedding." if model.config.tied_head else "head.")
        with stream.loaded(*parts):
            found = stream.logits(x)
    assert torch.equal(found, expected)
    assert all(parameter.is_meta for parameter in stream.decoder.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_planned_weight_has_a_sensitivity_and_a_hessian(
    name: str, opened: Callable, ids: Tensor, tmp_path: Path
) -> None:
    model, plan = opened(name)
    stream = LayerStream(model)
    keys = [group.key for group in plan if group.kind != "gather"]
    hessians = Hessians({key: model.weights[key].shape for key in keys})
    names = [member for group in plan for member in group.names]
    found = measure(stream, ids, names, hessians, 0, tmp_path, lambda _: None)
    for member in names:
        *stack, rows, columns = model.weights[member].shape
        assert found[member].rows.shape == (*stack, rows)
        assert found[member].columns.shape == (*stack, columns)
        assert float(found[member].rows.sum()) > 0
    for key in keys:
        hessian = hessians.take(key)
        columns = model.weights[key].shape[-1]
        assert hessian.shape[-2:] == (columns, columns)
        assert float(hessian.diagonal(dim1=-2, dim2=-1).sum()) > 0
        assert torch.allclose(hessian, hessian.mT)


def test_sensitivity_foretells_the_divergence(
    opened: Callable, ids: Tensor, tmp_path: Path
) -> None:
    """Random errors in one matrix: the KL divergence is what was foretold, within a factor 2."""
    model, _ = opened("llama-biased-tied")
    names = ["layers.1.feed_forward.up.weight", "layers.0.mixer.value.weight", "embedding.weight"]
    draw = torch.Generator().manual_seed(1)
    many = torch.randint(3, 1000, (16, 40), generator=draw)
    found = measure(LayerStream(model), many, names, Hessians({}), 0, tmp_path, lambda _: None)
    whole = LayerStream(model)
    whole.hold()
    with torch.no_grad():
        exact = run(whole.decoder, many, {}).log_softmax(-1)
        for name in names:
            weight = whole.decoder.get_parameter(name)
            error = torch.randn(weight.shape, generator=draw) * weight.std() * 0.03
            felt = found[name]
            foretold = float((error.square() @ felt.columns * felt.rows).sum())
            rough = run(whole.decoder, many, {name: weight + error}).log_softmax(-1)
            happened = float((exact.exp() * (exact - rough)).sum(-1).mean())
            assert foretold / 2 < happened < foretold * 2, name


def test_hessians_of_experts_are_of_the_tokens_they_get(opened: Callable, ids: Tensor) -> None:
    model, plan = opened("gpt-oss")
    stream = LayerStream(model)
    (key,) = [g.key for g in plan if g.kind == "experts" and g.key == "layers.0.feed_forward.down"]
    hessians = Hessians({key: model.weights[key].shape})
    with torch.no_grad(), stream.loaded("embedding."):
        x = stream.embed(ids)
    with torch.no_grad(), stream.loaded("layers.0.") as held, hessians.watching(held):
        stream.run_layer(0, x, None)
    experts = hessians.take(key)
    assert experts.shape[0] == 4
    assert len({round(float(each.trace()), 3) for each in experts}) == 4
