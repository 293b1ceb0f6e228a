"""CoreML: its table of ops against ONNX Runtime's own, what it refuses, and what a package says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgewright.artifacts import Package
from edgewright.artifacts.errors import ExportError, SessionError
from edgewright.artifacts.summary import render, summarise
from edgewright.export import export_checkpoint
from edgewright.export.providers import find_provider
from edgewright.export.providers.coreml import limit
from edgewright.runtime import Session
from tests import model_zoo as zoo

TABLE = "tools/mobile_helpers/coreml_supported_mlprogram_ops.md"
FLOAT, HALF, INT64, BOOL = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.INT64,
    ir.DataType.BOOL,
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("coreml")
    checkpoint = zoo.write_checkpoint("llama", folder, "float16")
    return export_checkpoint(checkpoint, folder / "package", ("coreml",))


def test_every_op_is_in_the_table_of_onnxruntime() -> None:
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    table = (Path(spec.origin).parent / TABLE).read_text()
    listed = set(re.findall(r"^\|ai\.onnx[:.](\w+)\|", table, re.MULTILINE))
    ops = find_provider("coreml").domains[""]
    assert ops is not None
    assert "MatMul" in listed
    assert ops <= listed


def _value(dtype: ir.DataType, *sizes: int, constant: bool = False) -> ir.Value:
    value = ir.Value(name="v", type=ir.TensorType(dtype), shape=ir.Shape(sizes))
    if constant:
        value.const_value = ir.tensor([0] * 1)
        ir.Graph([], [], nodes=[], initializers=[value])
    else:
        ir.Node("", "Made", [], outputs=[value])
    return value


def _node(op: str, *inputs: ir.Value, **attributes: float) -> ir.Node:
    named = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]
    return ir.Node("", op, list(inputs), named)


X, W = _value(HALF, 2, 4), _value(HALF, 4, 4, constant=True)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_node("Gemm", X, W, transB=1), None),
        (_node("Gemm", X, X), "input 1 is not constant"),
        (_node("Gemm", X, W, transA=1), "transposed"),
        (_node("Gemm", X, W, alpha=2.0), "scaled"),
        (_node("Slice", X, _value(INT64, 1)), "input 1 is not constant"),
        (_node("Add", _value(INT64, 2), _value(INT64, 2)), "no floats"),
        (_node("Where", _value(BOOL, 2), X, X), None),
        (_node("Where", _value(BOOL, 2), _value(INT64, 2), X), "no floats"),
        (_node("Pow", X, X), "float32"),
        (_node("Pow", _value(FLOAT, 2), _value(FLOAT, 2)), None),
        (_node("Tile", _value(HALF, 1, 1, 1, 1, 1, 2)), "more than 5 dimensions"),
        (_node("Conv", X, _value(HALF, 4, 1, 3, constant=True)), None),
        (_node("Conv", X, _value(HALF, 4, 1, 3, 3, 3, constant=True)), "one or two dimensions"),
        (_node("Cast", ir.Value(name="input_ids", type=ir.TensorType(INT64))), "goes into the"),
    ],
)
def test_the_notes_of_that_table_are_kept(node: ir.Node, reason: str | None) -> None:
    found = limit(node)
    assert (found is None) == (reason is None), found
    assert found is None or (reason is not None and reason in found)


def test_its_graphs_are_of_floats_and_of_a_plain_opset(package: Package) -> None:
    (variant,) = package.manifest.variants
    for path in variant.graphs.values():
        model = onnx.load(package.root / path, load_external_data=False)
        assert [imported.version for imported in model.opset_import] == [20]
        kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
        assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def test_a_package_says_that_it_has_not_run_on_a_mac(package: Package) -> None:
    (variant,) = package.manifest.variants
    assert any("never run on a Mac" in note for note in variant.notes)
    assert "never run on a Mac" in render(summarise(package))


def test_routed_experts_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("qwen3-moe", tmp_path)
    with pytest.raises(ExportError, match=r"provider coreml does not take .* \(TopK\)"):
        export_checkpoint(checkpoint, tmp_path / "package", ("coreml",))


@pytest.mark.skipif(
    "CoreMLExecutionProvider" in onnxruntime.get_available_providers(), reason="this is a Mac"
)
def test_elsewhere_than_on_a_mac_it_is_one_clear_line(package: Package) -> None:
    with pytest.raises(SessionError, match=r"has no CoreMLExecutionProvider; .* on macOS") as error:
        Session.open(package.root, "coreml")
    assert "\n" not in str(error.value)
