"""Validation passes what is right, and names the layer and op of what is not."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file

from edgewright.artifacts import Package
from edgewright.artifacts.errors import PackageError
from edgewright.export.validate import Report, validate
from edgewright.export.validate.metrics import Difference
from edgewright.export.validate.report import GreedyCheck, LogitCheck
from tests.export.spoiling import node, respoken


def _validate(package: Path, checkpoint: Path, **options: bool) -> Report:
    return validate(package, checkpoint, prompt_tokens=(1, 20), greedy_tokens=8, seed=3, **options)


def test_a_right_package_passes_and_keeps_the_evidence(
    package: Package, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(package.root, tmp_path / "package")
    report = _validate(tmp_path / "package", checkpoint, layers=True)
    assert report.passed and report.culprit is None
    assert report.reference.startswith("transformers 5.23")
    assert {check.schedule for check in report.logits} == {
        "at once",
        "in sevens",
        "token by token",
        "resumed",
        "in a batch",
    }
    assert {"layers.0", "layers.1", "layers.2"} <= {check.layer for check in report.layers}
    opened = Package.open(tmp_path / "package", verify=True)
    stored = json.loads(opened.read_evidence("cpu"))
    assert stored["passed"] and stored["max_error"] == report.worst.difference.error
    assert "passed" in report.render().splitlines()[-1]


@pytest.mark.parametrize(
    ("op", "index", "attribute", "factor", "layer"),
    [
        ("CachedAttention", 1, "scale", 1.05, "layers.1"),
        ("RMSNormalization", 4, "epsilon", 1e5, "layers.2"),
    ],
)
def test_a_changed_attribute_is_found(
    package: Package,
    checkpoint: Path,
    tmp_path: Path,
    op: str,
    index: int,
    attribute: str,
    factor: float,
    layer: str,
) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        for each in node(model, op, index).attribute:
            if each.name == attribute:
                each.f *= factor

    spoiled = respoken(package.root, tmp_path / "spoiled", spoil)
    report = _validate(spoiled, checkpoint)
    assert not report.passed
    assert report.culprit is not None
    assert report.culprit.layer == layer
    assert report.culprit.op.endswith(op)
    assert f"first difference in {layer}" in report.render()
    assert not json.loads(report.to_json())["passed"]


def _swap_states(model: onnx.ModelProto) -> None:
    first, second = node(model, "CachedAttention", 1), node(model, "CachedAttention", 2)
    first.input[3], second.input[3] = second.input[3], first.input[3]


def _read_another_layers_weight(model: onnx.ModelProto) -> None:
    product = next(n for n in model.graph.node if "layers.1.feed_forward.up.weight" in n.input)
    product.input[1] = "layers.2.feed_forward.up.weight"


def _divide_the_residual(model: onnx.ModelProto) -> None:
    """The Add that takes what layer 1's attention gives back into the stream."""
    product = next(n for n in model.graph.node if "layers.1.mixer.output.weight" in n.input)
    next(n for n in model.graph.node if product.output[0] in n.input).op_type = "Sub"


def _turn_elsewhere(model: onnx.ModelProto) -> None:
    """Of the positions, the one sum of whole numbers."""
    node(model, "Add", 0).op_type = "Mul"


@pytest.mark.parametrize(
    ("spoil", "layer", "op"),
    [
        (lambda m: setattr(node(m, "Sigmoid", 1), "op_type", "Tanh"), "layers.1", "Tanh"),
        (_divide_the_residual, "layers.1", "Sub"),
        (_swap_states, "layers.1", "CachedAttention"),
        (_read_another_layers_weight, "layers.1", "BlockMatMul"),
        (lambda m: setattr(node(m, "Sin", 0), "op_type", "Cos"), "the model", "Cos"),
        (_turn_elsewhere, "the model", "Mul"),
    ],
)
def test_a_changed_op_is_found(
    package: Package,
    checkpoint: Path,
    tmp_path: Path,
    spoil: Callable[[onnx.ModelProto], None],
    layer: str,
    op: str,
) -> None:
    report = _validate(respoken(package.root, tmp_path / "spoiled", spoil), checkpoint)
    assert report.culprit is not None
    told = report.culprit.describe()
    assert told.startswith(f"first difference in {layer}: ") and f"{op} (node " in told


def test_every_op_of_the_graph_is_compared(package: Package, checkpoint: Path) -> None:
    report = _validate(package.root, checkpoint, layers=True, store=False)
    graph = onnx.load(package.root / "variants/cpu/model.onnx", load_external_data=False).graph
    nameless = [n for n in graph.node if n.output[0].startswith(("val_", "sym_size"))]
    states = sum(node.op_type == "CachedAttention" for node in graph.node) * 2
    compared = sum(check.ops for check in report.layers)
    assert compared == len(graph.node) - len(nameless) + states


def test_what_is_no_number_is_null_in_json() -> None:
    nowhere = Difference(math.inf, math.nan, math.nan, math.nan, 0.0)
    check = LogitCheck(1, "at once", nowhere, False)
    report = Report("p", "cpu", "native", "r", 1e-4, (check,), (GreedyCheck(1, 1, 0),))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    shown = json.loads(report.to_json(), parse_constant=refuse)
    assert shown["max_error"] is None and not shown["passed"]


def test_a_changed_weight_is_found_and_named(
    package: Package, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(package.root, tmp_path / "spoiled")
    tensor = load_file(checkpoint / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    blob = tmp_path / "spoiled" / "shared_assets" / f"sha256-{digest}"
    blob.write_bytes((tensor * 1.5).numpy().tobytes())
    report = _validate(tmp_path / "spoiled", checkpoint)
    assert report.culprit is not None
    assert report.culprit.weights == ("layers.1.feed_forward.down.weight",)
    assert report.culprit.op == "ai.edgewright::BlockMatMul"


def test_what_only_later_calls_get_wrong_is_found(
    package: Package, checkpoint: Path, tmp_path: Path
) -> None:
    """A rotation that forgets where it is: right for a whole prompt, wrong from the second call."""

    def spoil(model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        index = next(i for i, node in enumerate(nodes) if node.op_type == "Add")
        start = nodes[index].input[0]
        nodes[index].input[0] = "nowhere"
        nodes.insert(index, onnx.helper.make_node("Sub", [start, start], ["nowhere"]))

    report = _validate(respoken(package.root, tmp_path / "spoiled", spoil), checkpoint)
    passed = {check.schedule: check.passed for check in report.logits if check.prompt_tokens == 20}
    assert passed["at once"] and not passed["in sevens"]
    assert report.culprit is not None and report.culprit.schedule == "in sevens"


def test_another_models_checkpoint_is_refused(package: Package, tmp_path: Path) -> None:
    from tests import model_zoo as zoo

    other = zoo.write_checkpoint("mistral", tmp_path)
    with pytest.raises(PackageError, match="another model"):
        _validate(package.root, other)


def test_without_transformers_our_own_model_is_the_reference(
    package: Package, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = _validate(package.root, checkpoint, store=False)
    assert report.passed
    assert report.reference == "edgewright's own PyTorch model (transformers is not installed)"
