"""Packed packages of many kinds of model: what is in them, and that they give what PyTorch gives
with the very same weights, in our kernels, in function bodies and in ONNX Runtime's own ops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgewright.artifacts import Package
from edgewright.artifacts.errors import ExportError, PackageError
from edgewright.artifacts.summary import render, summarise
from edgewright.custom_ops.packed_weights import QuantizedMatrix
from edgewright.export import export_checkpoint, exporter
from edgewright.export.exporter import traced_graph
from edgewright.export.packing import joint_name
from edgewright.export.portable_weights import portable_rows
from edgewright.export.quantize.plan import WeightGroup, plan_of
from edgewright.export.validate import validate
from edgewright.model.loading import open_model
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.export.plain_quantiser import Plain
from tests.export.spoiling import respoken

Exported = Callable[..., Package]


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    """A package of a zoo entry, its weights rounded plainly."""

    def make(
        name: str, plain: Plain, providers: tuple[str, ...] = ("cpu",), **more: object
    ) -> Package:
        monkeypatch.setattr(exporter, "quantize_model", plain.quantize_model)
        checkpoint = zoo.write_checkpoint(name, tmp_path)
        return export_checkpoint(checkpoint, tmp_path / "package", providers, 4.0, **more)  # type: ignore[arg-type]

    return make


def _checkpoint(tmp_path: Path, name: str) -> Path:
    return tmp_path / f"{name}-float32"


def _plan(tmp_path: Path, name: str) -> dict[str, WeightGroup]:
    model = open_model(zoo.write_checkpoint(name, tmp_path))
    plan = plan_of(traced_graph(model).model.graph, model)
    return {joint_name(group.names): group for group in plan}


def _ops(package: Package, variant: str = "cpu") -> Counter[str]:
    path = package.root / package.manifest.variant(variant).graphs["step"]
    return Counter(
        f"{node.op_type}:{node.overload}"
        for node in onnx.load(path, load_external_data=False).graph.node
        if node.domain
    )


def test_matrices_of_one_input_are_one_group(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "llama-biased-tied")
    attention = plan["layers.0.mixer.query+key+value.weight"]
    assert attention.rows == (60, 60, 60) and attention.shape == (1, 180, 60)
    assert plan["embedding.weight"].also_gathered
    # A bias stands between the product and what gates it.
    assert plan["layers.0.feed_forward.up+gate.weight"].activation is None
    # 60 x 60 values by themselves are too few.
    assert "layers.0.mixer.output.weight" not in plan


def test_gates_experts_and_latents_are_groups_of_their_own(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "deepseek-v3")
    assert plan["layers.0.feed_forward.gate+up.weight"].activation == "silu"
    assert plan["layers.1.feed_forward.down"].shape == (8, 60, 28)
    assert plan["embedding.weight"].kind == "gather" and plan["head.weight"].kind == "matmul"
    assert not any("router" in name for name in plan)


def test_a_shared_blocks_weights_are_planned_once(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "zamba2")
    names = [name for group in plan.values() for name in group.names]
    assert len(names) == len(set(names))
    assert plan["layers.1.mixer.block.query+key+value.weight"].rows == (84, 42, 42)


# Widths that change from member to member, so that a weight has segments.
PLAIN = Plain((4, 3, 5, 8, 6, 2))
MODELS = [
    ("llama", PLAIN),
    ("llama-biased-tied", Plain((3, 4), outliers=True)),
    ("llama-gelu", Plain((4,), block=32, zeros=True)),
    ("phi3", Plain((5, 6, 8), column_scale=True, column_order=True)),
    ("mixtral", Plain((3,), outliers=True, column_order=True)),
    ("gpt-oss", Plain((4,), zeros=True)),
    ("deepseek-v3", PLAIN),
    ("mamba2", Plain((2, 3), block=128)),
    ("zamba2", PLAIN),
    ("qwen3-next", Plain((4,), outliers=True)),
]


@pytest.mark.parametrize(("name", "plain"), MODELS)
def test_a_packed_package_is_what_pytorch_makes_of_its_weights(
    exported: Exported, tmp_path: Path, name: str, plain: Plain
) -> None:
    """Each op by itself is held to 1e-4; the whole model to what an int8 step may become."""
    package = exported(name, plain)
    report = validate(
        package.root, _checkpoint(tmp_path, name), prompt_tokens=(1, 19), greedy_tokens=8
    )
    assert report.passed, report.render()
    assert report.kernels == "native" and report.fidelity is not None and report.layers
    assert max(check.error for check in report.layers) < 2e-2


def test_without_kernels_the_bodies_give_the_same(exported: Exported, tmp_path: Path) -> None:
    plain = Plain((3, 4), outliers=True, column_order=True)
    package = exported("deepseek-v3", plain, targets=())
    checkpoint = _checkpoint(tmp_path, "deepseek-v3")
    report = validate(package.root, checkpoint, prompt_tokens=(9,), greedy_tokens=2)
    assert report.passed and report.kernels == "portable", report.render()


@pytest.mark.parametrize(
    ("name", "plain", "dtypes"),
    [
        ("llama-biased-tied", Plain((2, 3)), ("int2", "int4", "float32")),
        ("llama-biased-tied", Plain((4,), column_order=True), ("int4", "float32")),
        ("llama", Plain((4,), zeros=True, column_scale=True, column_order=True), ("int4",)),
        ("llama", Plain((3,), outliers=True), ("int3", "int8")),
        ("mixtral", Plain((4,)), ("int4", "float32")),
    ],
)
def test_onnx_runtimes_own_ops_have_the_same_weights(
    exported: Exported, tmp_path: Path, name: str, plain: Plain, dtypes: tuple[str, ...]
) -> None:
    package = exported(name, plain, ("cpu", "cpu-portable"))
    own, portable = package.manifest.variants
    assert portable.weight_dtypes == dtypes and not portable.libraries
    assert own.bits_per_weight == package.manifest.model.bits_per_weight
    assert {op.split(":")[0] for op in _ops(package, "cpu-portable")} == {"MatMulNBits"}
    checkpoint = _checkpoint(tmp_path, name)
    report = validate(
        package.root, checkpoint, provider="cpu-portable", prompt_tokens=(19,), greedy_tokens=4
    )
    assert report.passed and report.kernels == "portable", report.render()


def test_variants_of_float_weights_share_every_blob(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama-biased-tied", tmp_path)
    package = export_checkpoint(
        checkpoint, tmp_path / "package", ("cpu", "cpu-portable"), targets=()
    )
    first, second = package.manifest.variants
    assert first.weights == second.weights and not _ops(package, "cpu-portable")
    ids = zoo.prompt("llama-biased-tied", 17)
    found = Session.open(package.root, provider="cpu-portable").logits(ids)
    assert zoo.error(torch.from_numpy(found), zoo.reference_logits(checkpoint, ids)) < 1e-4


def test_nodes_are_joined_and_fused(exported: Exported) -> None:
    package = exported("llama", PLAIN, targets=())
    # Three layers: q+k+v, output, down each, and the head; 60 x 84 values of output are enough.
    assert _ops(package) == {
        "BlockGather:": 1,
        "BlockMatMul:packed": 10,
        "GatedMatMul:": 3,
        "CachedAttention:": 3,
    }


def test_the_manifest_says_what_was_asked_and_made(exported: Exported, tmp_path: Path) -> None:
    package = exported("llama-biased-tied", Plain((3, 4)), targets=(), seed=7)
    model, (variant,) = package.manifest.model, package.manifest.variants
    source = open_model(_checkpoint(tmp_path, "llama-biased-tied"))
    plan = plan_of(traced_graph(source).model.graph, source)
    planned = {name for group in plan for name in group.names}
    kept = sum(t.nbytes for name, t in source.parameters.items() if name not in planned)
    blobs = [path for path in variant.weights if _is_packed(package, path)]
    stored = sum(package.manifest.files[path].size for path in blobs)
    assert variant.bits_per_weight == 8 * (stored + kept) / model.parameters
    assert model.bits_per_weight == variant.bits_per_weight < 8
    assert variant.weight_dtypes == ("int3", "int4", "float32")
    options = package.manifest.provenance.options
    assert options["bits"] == 4.0 and options["seed"] == 7 and options["chosen_method"] == "plain"
    assert "weights int3, int4, float32" in render(summarise(package))


def _is_packed(package: Package, path: str) -> bool:
    return (package.root / path).read_bytes()[:4] == b"EWPM"


def test_a_spoiled_packed_weight_is_named(exported: Exported, tmp_path: Path) -> None:
    package = exported("llama", PLAIN)

    def spoil(model: onnx.ModelProto) -> None:
        products = [node for node in model.graph.node if node.overload == "packed"]
        first, second = (
            n for n in products if "down" in n.input[1] and "layers.2" not in n.input[1]
        )
        first.input[1], second.input[1] = second.input[1], first.input[1]

    spoiled = respoken(package.root, tmp_path / "spoiled", spoil)
    report = validate(spoiled, _checkpoint(tmp_path, "llama"), prompt_tokens=(9,), greedy_tokens=2)
    assert not report.passed and report.culprit is not None
    assert report.culprit.layer == "layers.0" and "BlockMatMul" in report.culprit.op


def test_another_plan_is_another_model(exported: Exported, tmp_path: Path) -> None:
    package = exported("llama", PLAIN, targets=())

    def rename(model: onnx.ModelProto) -> None:
        next(t for t in model.graph.initializer if t.name == "head.weight.packed").name = "x.packed"
        for node in model.graph.node:
            names = ["x.packed" if name == "head.weight.packed" else name for name in node.input]
            node.input[:] = names

    spoiled = respoken(package.root, tmp_path / "spoiled", rename)
    with pytest.raises(PackageError, match=r"no weight head\.weight\.packed"):
        validate(spoiled, _checkpoint(tmp_path, "llama"))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("made", [{}, {"zeros": True}, {"outliers": True}])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (37, 75), (5, 160)])
def test_portable_rows_are_the_same_values(
    bits: int, made: dict[str, bool], rows: int, columns: int
) -> None:
    weight = np.random.default_rng(bits).standard_normal((rows, columns)).astype(np.float32)
    quantised = Plain((bits,), **made).rounded(weight, bits)
    (found,) = portable_rows(QuantizedMatrix((quantised,)))
    assert np.array_equal(found.values(), quantised.dequantised())
    assert found.bits == 8 if made.get("outliers") else found.bits <= max(4, 2 * bits)


def test_a_budget_that_cannot_be_met(tmp_path: Path) -> None:
    """A quarter of the parameters stays in float32."""
    checkpoint = zoo.write_checkpoint("llama-biased-tied", tmp_path)
    with pytest.raises(ExportError, match="bits"):
        export_checkpoint(checkpoint, tmp_path / "package", bits=2.5, targets=())
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_the_budget_is_met_and_told(tmp_path: Path, name: str) -> None:
    checkpoint = zoo.write_checkpoint(name, tmp_path, "bfloat16")
    package = export_checkpoint(checkpoint, tmp_path / "package", bits=6.5, method="rtn")
    model = package.manifest.model
    assert 4 < model.bits_per_weight <= 6.5
    assert f"{model.bits_per_weight:.4g} bits per weight" in render(summarise(package))
    again = export_checkpoint(checkpoint, tmp_path / "again", bits=6.5, method="rtn")
    first, second = ((p.root / "manifest.json").read_bytes() for p in (package, again))
    assert first == second
