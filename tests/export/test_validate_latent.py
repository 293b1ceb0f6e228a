"""Validation of latent attention and grouped experts: it passes them, and names what is spoiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgewright.artifacts import Package
from edgewright.export import export_checkpoint
from edgewright.export.validate import Report, validate
from tests import model_zoo as zoo
from tests.export.spoiling import node, respoken


@pytest.fixture(scope="module")
def latent_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.write_checkpoint("deepseek-v3", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def latent_package(latent_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return export_checkpoint(latent_checkpoint, tmp_path_factory.mktemp("package") / "latent")


def _validate(package: Path, checkpoint: Path, **options: bool) -> Report:
    return validate(package, checkpoint, prompt_tokens=(20,), greedy_tokens=4, seed=3, **options)


def test_a_right_package_passes(latent_package: Package, latent_checkpoint: Path) -> None:
    report = _validate(latent_package.root, latent_checkpoint, layers=True, store=False)
    assert report.passed and report.culprit is None
    assert {"layers.0", "layers.1", "layers.2"} <= {check.layer for check in report.layers}


def _scale_the_scores(model: onnx.ModelProto) -> None:
    attention = node(model, "LatentAttention", 1)
    next(a for a in attention.attribute if a.name == "scale").f *= 1.05


def _take_another_layers_up(model: onnx.ModelProto) -> None:
    node(model, "LatentAttention", 1).input[3] = node(model, "LatentAttention", 2).input[3]


def _swap_caches(model: onnx.ModelProto) -> None:
    first, second = node(model, "LatentAttention", 1), node(model, "LatentAttention", 2)
    first.input[4], second.input[4] = second.input[4], first.input[4]


def _forget_the_correction(model: onnx.ModelProto) -> None:
    """The Add that gives each expert of layer 2 its learned part of the choice."""
    chosen = next(n for n in model.graph.node if "layers.2.feed_forward.correction" in n.input)
    chosen.op_type = "Sub"


@pytest.mark.parametrize(
    ("spoil", "layer", "op"),
    [
        (_scale_the_scores, "layers.1", "LatentAttention"),
        (_take_another_layers_up, "layers.1", "LatentAttention"),
        (_swap_caches, "layers.1", "LatentAttention"),
        (_forget_the_correction, "layers.2", "Sub"),
    ],
)
def test_what_is_spoiled_is_named(
    latent_package: Package,
    latent_checkpoint: Path,
    tmp_path: Path,
    spoil: Callable[[onnx.ModelProto], None],
    layer: str,
    op: str,
) -> None:
    spoiled = respoken(latent_package.root, tmp_path / "spoiled", spoil)
    report = _validate(spoiled, latent_checkpoint)
    assert report.culprit is not None and not report.passed
    told = report.culprit.describe()
    assert told.startswith(f"first difference in {layer}: ") and f"{op} (node " in told
