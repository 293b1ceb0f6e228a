"""Graphs compiled ahead: stored whole or not at all, and refused where they are not what is asked
for. The plugin is played by a stand-in that writes what it would write."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgewright.artifacts import (
    Compiled,
    GenerationDefaults,
    Manifest,
    ModelInfo,
    Package,
    PackageWriter,
    Provenance,
    StateLayout,
    StaticSizes,
    Variant,
)
from edgewright.artifacts.errors import EdgewrightError, PackageError, SessionError
from edgewright.runtime import Session, compiling, context_binary
from edgewright.runtime.compiling import compilable, compile_variant, require_plugin
from edgewright.runtime.execution_providers import EXECUTION_PROVIDERS, ExecutionProvider

QNN = "qnn:sm8650"
Result = subprocess.CompletedProcess[bytes]


def _variant(provider: str) -> Variant:
    name = provider.replace(":", "-")
    return Variant(
        name=name,
        provider=provider,
        graphs={role: f"variants/{name}/{role}.onnx" for role in ("prefill", "decode")},
        opset=23,
        ir_version=10,
        onnxruntime_min="1.31",
        libraries={},
        weights=(),
        states=StateLayout(()),
        bits_per_weight=16.0,
        weight_dtypes=("float16",),
        compute_dtype="float16",
        static=StaticSizes(8, 64),
    )


@pytest.fixture
def package(tmp_path: Path) -> Package:
    variants = (_variant(QNN), _variant("qnn:sm8750"))
    with PackageWriter(tmp_path / "package") as writer:
        for variant in variants:
            for path in variant.graphs.values():
                writer.add_bytes(path, path.encode())
        return writer.finish(
            Manifest(
                model=ModelInfo("llama", 100, 16.0, ("float16",), 50, 1, 8, 64),
                generation=GenerationDefaults(),
                tokenizer=None,
                variants=variants,
                provenance=Provenance("toy", "ab" * 32, {"edgewright": "0.1.0"}, {}),
            )
        )


def _plugin(monkeypatch: pytest.MonkeyPatch, run: Callable[[Sequence[str]], int]) -> None:
    """`run` has the arguments of the worker, and gives its exit status."""

    def stand_in(command: Sequence[str], **_: object) -> Result:
        return Result(command, run(command[3:]), b"", b"some\nlast words\n")

    monkeypatch.setattr(compiling, "require_plugin", lambda _: None)
    monkeypatch.setattr(compiling.subprocess, "run", stand_in)


def _compiles(seed: bytes = b"") -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        _, source, root, graph, report = arguments
        assert Path(source).is_file() and Path(root).is_dir()
        out = Path(graph)
        out.write_bytes(b"graph")
        out.with_name(f"{out.stem}_qnn.bin").write_bytes(seed + out.stem.encode())
        versions = {"onnxruntime": "1.31.1", "onnxruntime-qnn": "2.7.0"}
        told = {"seconds": 0.25, "compatibility": "v2:75:57", "versions": versions}
        Path(report).write_text(json.dumps(told))
        return 0

    return run


def _compiled(package: Package, name: str = "qnn-sm8650") -> Compiled:
    compiled = package.manifest.variant(name).compiled
    assert compiled is not None
    return compiled


def test_binaries_are_listed_hashed_and_replaced(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plugin(monkeypatch, _compiles())
    first, second = compilable(package)
    done = compile_variant(compile_variant(package, first), second)
    Package.open(package.root, verify=True)
    compiled = _compiled(done)
    assert (compiled.soc_model, compiled.htp_arch) == (57, 75)
    assert compiled.versions["onnxruntime-qnn"] == "2.7.0"
    assert compiled.graphs["decode"].seconds == 0.25
    binary = compiled.graphs["decode"].binary
    assert (package.root / binary).read_bytes() == b"decode"
    assert (_compiled(done, "qnn-sm8750").soc_model, done.manifest.files[binary].size) == (69, 6)
    _plugin(monkeypatch, _compiles(b"other "))
    again = compile_variant(done, first)
    Package.open(package.root, verify=True)
    assert not (package.root / binary).exists() and binary not in again.manifest.files
    assert (package.root / _compiled(again).graphs["decode"].binary).read_bytes() == b"other decode"
    assert list(package.root.parent.iterdir()) == [package.root]


def _says(arguments: Sequence[str]) -> int:
    Path(arguments[-1]).write_text(json.dumps({"error": "it does not fit"}))
    return 0


def _never_ends(arguments: Sequence[str]) -> int:
    raise subprocess.TimeoutExpired(list(arguments), 7)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda _: -11, "was ended by SIGSEGV"),
        (lambda _: 3, "left with status 3: last words"),
        (lambda _: 0, "left with status 0: last words"),
        (_says, "cannot be compiled: it does not fit"),
        (_never_ends, "not done after 7 s"),
    ],
)
def test_a_compiler_that_fails_leaves_the_package_as_it_was(
    package: Package,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Sequence[str]], int],
    message: str,
) -> None:
    _plugin(monkeypatch, run)
    before = sorted(package.root.rglob("*"))
    with pytest.raises(PackageError, match=rf"^{QNN}: variants/.*onnx.*{message}$"):
        compile_variant(package, package.manifest.variants[0], seconds=7)
    assert sorted(package.root.rglob("*")) == before
    assert Package.open(package.root).manifest == package.manifest


def test_what_cannot_be_compiled_is_said(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compilable(package, "cpu") == ()
    with pytest.raises(SessionError, match="provider cpu compiles nothing ahead"):
        require_plugin("cpu")
    variant = replace(package.manifest.variants[0], onnxruntime_min="99.1")
    monkeypatch.setattr(compiling, "require_plugin", lambda _: None)
    with pytest.raises(SessionError, match=r"needs 99.1 or newer: pip install -U onnxruntime"):
        compile_variant(package, variant)


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is not None, reason="the plugin is installed"
)
def test_a_missing_plugin_names_its_extra(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SessionError, match=r"pip install 'edgewright\[qnn\]'"):
        compile_variant(package, package.manifest.variants[0])
    monkeypatch.setattr(compiling, "require_plugin", lambda _: None)
    with pytest.raises(PackageError, match=r"compiled: onnxruntime_qnn cannot be imported"):
        compile_variant(package, package.manifest.variants[0])


def _refused(package: Package, message: str) -> None:
    with pytest.raises(EdgewrightError, match=message) as caught:
        Session.open(package.root, QNN)
    assert "\n" not in str(caught.value)


@pytest.fixture
def done(package: Package, monkeypatch: pytest.MonkeyPatch) -> Package:
    _plugin(monkeypatch, _compiles())
    return compile_variant(package, package.manifest.variants[0])


@pytest.mark.parametrize("part", ["graph", "binary"])
def test_a_spoilt_binary_is_refused(done: Package, part: str) -> None:
    path = done.root / getattr(_compiled(done).graphs["prefill"], part)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    _refused(done, rf"{path.name} is not what manifest.json says")


def test_a_binary_for_another_chip_is_refused(done: Package) -> None:
    written = json.loads((done.root / "manifest.json").read_bytes())
    written["variants"][0]["compiled"] |= {"soc_model": 69, "htp_arch": 79}
    (done.root / "manifest.json").write_text(json.dumps(written))
    _refused(done, r"compiled for SoC 69 \(v79\); qnn:sm8650 is SoC 57 \(v75\): compile it again")


@pytest.mark.parametrize("says", ["SM8750", "SM8750-AB\n"])
def test_a_binary_for_another_chip_than_this_machines_is_refused(
    done: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str
) -> None:
    (tmp_path / "machine").write_text(says)
    monkeypatch.setattr(context_binary, "_MACHINE", tmp_path / "machine")
    _refused(done, "was compiled for sm8650; this machine is sm8750")


def test_a_plugin_for_a_newer_onnxruntime_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(*_: str) -> None:
        raise RuntimeError("The requested API version [99]\n is not available")

    module = types.ModuleType("onnxruntime_qnn")
    module.get_library_path = lambda: "library"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", module)
    ort = types.SimpleNamespace(__version__="1.30.0", register_execution_provider_library=register)
    fresh = ExecutionProvider("QNNExecutionProvider", EXECUTION_PROVIDERS["qnn"].plugin)
    with pytest.raises(SessionError, match=r"cannot be loaded by onnxruntime 1.30.0: .*99. is not"):
        fresh.add_to(ort, None, QNN)
