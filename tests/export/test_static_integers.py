"""Variants that compute in 16-bit integers: what their graphs hold, and that they compute what the
same graphs do in floats, but for what 8 bits cost a weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from edgewright.artifacts import Package
from edgewright.artifacts.errors import ExportError
from edgewright.export import export_checkpoint
from edgewright.export.providers import Provider, find_provider
from edgewright.export.static.weights import symmetric
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.export.static_cpu import offered

NAMES = ("w8a16", "w4a16")


def _on_the_cpu(name: str) -> Provider:
    """The HTP's graphs, which the CPU runs too."""
    provider = find_provider(f"qnn:sm8650-{name}")
    assert provider.static is not None
    shapes = replace(provider.static, chunk=8, capacity=40)
    return replace(provider, name=f"cpu:{name}", static=shapes)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("integers")
    checkpoint = zoo.write_checkpoint("llama", folder, "float16")
    with offered(*map(_on_the_cpu, NAMES)) as names:
        return export_checkpoint(checkpoint, folder / "package", names, tokens=1024, targets=())


def _graph(package: Package, variant: str, role: str) -> onnx.GraphProto:
    path = package.manifest.variant(variant).graphs[role]  # type: ignore[index]
    return onnx.load_from_string((package.root / path).read_bytes()).graph


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize(("name", "kind"), [("w8a16", "INT8"), ("w4a16", "INT4")])
def test_products_read_integers_alone(package: Package, name: str, kind: str, role: str) -> None:
    graph = _graph(package, f"cpu-{name}", role)
    made = {output: node for node in graph.node for output in node.output}
    held = {
        tensor.name: TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer
    }
    for node in graph.node:
        if node.op_type not in ("Gemm", "MatMul"):
            continue
        first, second = (made[name] for name in node.input)
        assert (first.op_type, second.op_type) == ("DequantizeLinear",) * 2
        assert held[first.input[2]] == "UINT16"
        # A weight, or a value that the HTP would take for 8 bits if it were unsigned.
        assert held[second.input[2]] == (kind if node.op_type == "Gemm" else "INT16")
    # States and tables are those of the float16 variant.
    states = {v.type.tensor_type.elem_type for v in graph.input if v.name.startswith("past.")}
    assert states == {TensorProto.FLOAT16}


def test_variants_say_their_own_bits(package: Package) -> None:
    eight, four = (package.manifest.variant(f"cpu-{name}") for name in NAMES)
    assert (eight.weight_dtypes, eight.compute_dtype) == (("int8", "float16"), "uint16")
    assert four.weight_dtypes == ("int4", "float16")
    # The embedding keeps its 16 bits; every scale is counted.
    assert 4 < four.bits_per_weight < eight.bits_per_weight < 12


def test_integers_compute_what_floats_do(package: Package) -> None:
    checkpoint = package.root.parent / "llama-float16"
    ids = zoo.prompt("llama", 30)
    exact = zoo.reference_logits(checkpoint, ids)
    session = Session.open(package.root, "cpu:w8a16")
    whole = torch.from_numpy(session.logits(ids))
    # Weights of 8 bits alone cost this model a tenth of its deviation.
    assert zoo.error(whole, exact) < 0.3
    rows = [session.prefill([ids[:20]])[0], *(session.decode([token])[0] for token in ids[20:])]
    # A decode step reads the same integers; only its states were float16 in between.
    assert zoo.error(torch.from_numpy(np.stack(rows)), whole[19:]) < 0.05


def test_a_model_too_large_to_make_up_text_wants_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewright.export.quantize import activation_rows

    monkeypatch.setattr(activation_rows, "made_up_text", lambda *_: None)
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    with (
        offered(_on_the_cpu("w8a16")) as names,
        pytest.raises(ExportError, match=r"too large to make up a text .*: give --text"),
    ):
        export_checkpoint(checkpoint, tmp_path / "package", names, targets=())


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_rounded_by_their_own_scale(bits: int, most: int, axis: int) -> None:
    values = np.random.default_rng(0).normal(0, 1, (6, 40)).astype(np.float32)
    values[2] *= 100
    values[3] = 0
    codes, scales = symmetric(values if axis == 0 else values.T.copy(), bits, axis)
    codes = codes if axis == 0 else codes.T
    assert np.abs(codes).max() == most and not codes[3].any()
    inside = np.abs(values) <= most * scales[:, None]
    assert (np.abs(codes * scales[:, None] - values) <= scales[:, None] / 2 + 1e-6)[inside].all()
