"""Static variants: what their graphs hold, what they share with others, and who refuses what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgewright.artifacts import Package
from edgewright.artifacts.errors import ExportError, SessionError
from edgewright.export import export_checkpoint
from edgewright.export.options import ExportOptions
from edgewright.export.providers import find_provider
from edgewright.export.providers.qnn import CHIPS
from edgewright.export.static import StaticShapes
from edgewright.runtime import Budget, Session
from edgewright.runtime.execution_providers import EXECUTION_PROVIDERS
from tests import model_zoo as zoo
from tests.export.static_cpu import offered, static_cpu

SHAPES = StaticShapes(chunk=8, capacity=40)
EXACT = static_cpu("exact", SHAPES)
HALF = static_cpu("half", replace(SHAPES, dtype="float16", update="delta"))
# What no provider of static shapes takes, and what few take.
REFUSED = {"Loop", "Scan", "If", "Shape", "NonZero", "Range", "ConstantOfShape", "CumSum"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("static")
    checkpoint = zoo.write_checkpoint("bamba", folder, "float16")
    with offered(EXACT, HALF) as names:
        return export_checkpoint(checkpoint, folder / "package", ("cpu", *names), targets=())


def _graph(package: Package, variant: str, role: str) -> onnx.GraphProto:
    path = package.manifest.variant(variant).graphs[role]  # type: ignore[index]
    return onnx.load_from_string((package.root / path).read_bytes()).graph


@pytest.mark.parametrize("variant", ["cpu-exact", "cpu-half"])
@pytest.mark.parametrize(("role", "seq"), [("prefill", 8), ("decode", 1)])
def test_every_size_is_a_number(package: Package, variant: str, role: str, seq: int) -> None:
    graph = _graph(package, variant, role)
    assert not REFUSED & {node.op_type for node in graph.node}
    assert {node.domain for node in graph.node} == {""}
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert sizes["input_ids"] == [1, seq]
    assert sizes["past.layers.1.key"] == [1, 2, 40, 12]
    for value in (*graph.input, *graph.output, *graph.value_info):
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim), value.name


def test_variants_say_what_they_are_fixed_to(package: Package) -> None:
    variant = package.manifest.variant("cpu-half")
    assert variant.provider == "cpu:half"
    assert variant.static is not None
    assert (variant.static.chunk, variant.static.capacity) == (8, 40)
    assert (variant.compute_dtype, variant.weight_dtypes) == ("float16", ("float16",))
    assert {(spec.dtype, spec.update) for spec in variant.states} == {("float16", "delta")}


def test_weights_of_one_type_are_shared(package: Package) -> None:
    """Those of the checkpoint's type are the cpu's; in another type they are both graphs'."""
    variants = {variant.name: set(variant.weights) for variant in package.manifest.variants}
    assert variants["cpu"] <= variants["cpu-half"]
    assert len(variants["cpu-exact"]) == len(variants["cpu"])
    assert not variants["cpu-exact"] & variants["cpu"]


def test_packed_weights_are_unpacked(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("qwen3-moe", tmp_path)
    with offered(EXACT) as (name,):
        package = export_checkpoint(
            checkpoint, tmp_path / "package", ("cpu-portable", name), 6.0, method="rtn", targets=()
        )
    ids = zoo.prompt("qwen3-moe", 17)
    packed, unpacked = (Session.open(package.root, each) for each in ("cpu-portable", name))
    difference = torch.from_numpy(unpacked.logits(ids) - packed.logits(ids)).abs().max()
    # The packed products round what they multiply.
    assert float(difference) < 0.1 * float(np.std(packed.logits(ids)))


def test_a_node_that_is_not_taken_is_named(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    picky = replace(EXACT, domains={"": frozenset({"Gather", "Reshape"})})
    with offered(picky) as (name,), pytest.raises(ExportError, match=r"nodes: node_\w+ \(\w+\), "):
        export_checkpoint(checkpoint, tmp_path / "package", (name,))
    assert not (tmp_path / "package").exists()


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    tensors["lm_head.weight"][3, 4] = 70000.0
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with (
        offered(HALF) as (name,),
        pytest.raises(ExportError, match=r"head\.weight.*beyond the range"),
    ):
        export_checkpoint(checkpoint, tmp_path / "package", (name,))


def test_a_session_keeps_to_the_fixed_sizes(package: Package) -> None:
    session = Session.open(package.root, "cpu:exact")
    assert session.context_limit == 40
    with pytest.raises(SessionError, match="holds 40 tokens, fixed when it was exported"):
        Session.open(package.root, "cpu:exact", capacity=41)
    with pytest.raises(SessionError, match="the context holds 40"):
        session.prefill([zoo.prompt("bamba", 41)])
    session.prefill([zoo.prompt("bamba", 40)])
    with pytest.raises(SessionError, match="the context holds 40"):
        session.decode(5)
    with pytest.raises(SessionError, match="the budget is 1000"):
        Session.open(package.root, "cpu:exact", budget=Budget(1000)).prefill([[1]])


def test_a_session_chooses_a_fixed_variant_only_if_asked(package: Package) -> None:
    assert Session.open(package.root).variant_name == "cpu"
    with pytest.raises(SessionError, match="no variant for qnn:sm8650; the package has cpu, cpu:"):
        Session.open(package.root, "qnn:sm8650")


def test_no_state_is_larger_than_the_models_context() -> None:
    assert StaticShapes(chunk=64, capacity=2048).within(48) == StaticShapes(chunk=48, capacity=48)


def test_an_op_may_want_a_smaller_chunk() -> None:
    shapes = StaticShapes(chunk=64, op_chunks={"GatedDelta": 8})
    assert shapes.within(512, {"GatedDelta", "CausalConv"}).chunk == 8
    assert shapes.within(512, {"CausalConv"}).chunk == 64


def test_the_runtime_knows_every_chip_there_is_a_provider_for() -> None:
    plugin = EXECUTION_PROVIDERS["qnn"].plugin
    assert plugin is not None
    assert tuple(plugin.chips) == CHIPS
    for chip in CHIPS:
        assert find_provider(f"qnn:{chip}").variant_name == f"qnn-{chip}"


@pytest.mark.parametrize("name", ["qnn", "qnn:sm9999", "qnn:", "cpu:sm8650", "npu:x", ":", ""])
def test_an_unknown_provider_is_refused(name: str) -> None:
    with pytest.raises(
        ExportError, match=f"provider '{name}' is not known; known are: .*qnn:sm8650"
    ):
        ExportOptions.check([name], None, "float32", None)
