"""webgpu and directml: their graphs on the processor, which has the same ops, and their tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from edgewright.artifacts.errors import ExportError, SessionError
from edgewright.export import export_checkpoint
from edgewright.export.providers import Provider, find_provider
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.export.static_cpu import offered


def _on_cpu(name: str) -> Provider:
    """In float32, which takes a Log more."""
    provider = find_provider(name)
    assert provider.static is not None
    shapes = replace(provider.static, chunk=16, capacity=60, dtype="float32")
    domains = provider.domains | {"": None}
    return replace(provider, name=f"cpu:{name}", domains=domains, static=shapes)


STAND_INS = [_on_cpu("webgpu"), _on_cpu("directml")]


@pytest.mark.parametrize("name", ["minicpm3", "mamba", "bamba", "qwen3.5-text"])
def test_their_graphs_equal_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint(name, tmp_path)
    with offered(*STAND_INS) as names:
        package = export_checkpoint(checkpoint, tmp_path / "package", names)
    ids = zoo.prompt(name, 41)
    exact = zoo.reference_logits(checkpoint, ids)
    for provider in names:
        session = Session.open(package.root, provider)
        for chunk in (41, 7, 1):
            found = torch.from_numpy(session.logits(ids, chunk=chunk))
            assert zoo.error(found, exact) <= zoo.TOLERANCE, (provider, chunk)


def test_recurrences_are_fused_where_they_can_be(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("bamba", tmp_path)
    package = export_checkpoint(checkpoint, tmp_path / "package", ("webgpu", "directml"))
    ops = {}
    for variant in package.manifest.variants:
        graph = onnx.load_from_string((package.root / variant.graphs["prefill"]).read_bytes())
        ops[variant.name] = {node.op_type for node in graph.graph.node}
        types = {value.type.tensor_type.elem_type for value in graph.graph.input}
        assert types == {onnx.TensorProto.INT32, onnx.TensorProto.FLOAT16}
    assert {"LinearAttention", "CausalConvWithState"} <= ops["webgpu"]
    assert not {"Min", "Max"} & ops["webgpu"]
    assert not {"RMSNormalization", "RotaryEmbedding", "LinearAttention"} & ops["directml"]


@pytest.mark.parametrize("provider", ["webgpu", "directml"])
def test_a_node_without_a_place_is_named(provider: str, tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    found = find_provider(provider)
    taken = found.domains[""]
    assert taken is not None
    picky = replace(found, domains=found.domains | {"": taken - {"Softmax"}})
    with offered(picky), pytest.raises(ExportError, match=r": \S+ \(Softmax\), "):
        export_checkpoint(checkpoint, tmp_path / "package", (provider,))


def test_a_value_of_a_type_without_a_place_is_named(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    found = find_provider("webgpu")
    assert found.static is not None
    wide = replace(found, static=replace(found.static, rewrites=found.static.rewrites[:-1]))
    with offered(wide), pytest.raises(ExportError, match=r": \S+ \(\w+ of int64 values\), "):
        export_checkpoint(checkpoint, tmp_path / "package", ("webgpu",))


@pytest.mark.parametrize("provider", ["webgpu", "directml"])
def test_an_onnxruntime_without_the_provider_names_the_extra(provider: str, tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    package = export_checkpoint(checkpoint, tmp_path / "package", (provider,))
    with pytest.raises(SessionError, match=rf"pip install 'edgewright\[{provider}\]'"):
        Session.open(package.root, provider)
