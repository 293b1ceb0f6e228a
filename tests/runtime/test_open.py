"""Opening: what may be opened, what is refused in one line, and what never enters the process."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from toy_packages import KEY, TRACE, toy_graph, toy_states, toy_weights, write_package, write_toy

from edgewright.artifacts import StateLayout, StateSpec, trust
from edgewright.artifacts.errors import EdgewrightError, PackageError, SessionError
from edgewright.artifacts.host_target import host_target
from edgewright.runtime import Session, engine

GRAPH = "variants/cpu/model.onnx"


@pytest.fixture
def copied(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "copy"))


def refuse(message: str, open_it: Callable[[], object]) -> None:
    with pytest.raises(EdgewrightError, match=message) as caught:
        open_it()
    assert "\n" not in str(caught.value)


def test_a_tampered_graph_is_refused(copied: Path) -> None:
    data = bytearray((copied / GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / GRAPH).write_bytes(data)
    refuse("is not what manifest.json says", lambda: Session.open(copied))


def test_tampered_weights_are_refused_when_asked(copied: Path) -> None:
    blob = max((copied / "shared_assets").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.write_bytes(data)
    refuse("is not what manifest.json says", lambda: Session.open(copied, verify=True))
    blob.write_bytes(data[:-4])
    refuse("bytes", lambda: Session.open(copied))


def test_no_package_no_variant(toy: Path, tmp_path: Path) -> None:
    refuse("not a package", lambda: Session.open(tmp_path / "nothing"))
    refuse("the package has cpu", lambda: Session.open(toy, provider="directml"))


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    graph = onnx.ModelProto()
    graph.ir_version = 10
    write_package(tmp_path / "p", graph, {}, states=StateLayout(()))
    refuse(GRAPH, lambda: Session.open(tmp_path / "p"))


def test_a_graph_unlike_the_manifest_is_refused(tmp_path: Path) -> None:
    states = toy_states(("append",))
    write_package(tmp_path / "p", toy_graph(), toy_weights(), states=states)
    refuse(r"layers\.1\.trace", lambda: Session.open(tmp_path / "p"))


def test_external_data_outside_the_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(toy_weights()["embed"].tobytes())
    graph, weights = toy_graph(), toy_weights()
    embed = weights.pop("embed")
    tensor = graph.graph.initializer.add()
    tensor.name, tensor.data_type = "embed", 1
    tensor.dims.extend(embed.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("length", str(embed.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    write_package(tmp_path / "p", graph, weights, states=toy_states(("append", "replace")))
    refuse(GRAPH, lambda: Session.open(tmp_path / "p"))


def test_a_vocabulary_unlike_the_graph_is_no_crash(tmp_path: Path) -> None:
    states = toy_states(("append", "replace"))
    write_package(tmp_path / "p", toy_graph(), toy_weights(), states=states, vocab=200)
    refuse("onnxruntime could not run", lambda: Session.open(tmp_path / "p").logits([1, 2]))


@pytest.mark.parametrize(
    "spec",
    [
        StateSpec("layers.1.trace", ("batch", 6), "float32", "ring"),
        StateSpec("layers.1.trace", ("batch", 6), "float32", "replace", "delta"),
        StateSpec("layers.1.trace", ("batch", 6), "float32", "append"),
        StateSpec("layers.1.trace", ("batch", "capacity"), "float32", "replace"),
    ],
    ids=str,
)
def test_states_of_kinds_to_come_are_refused(tmp_path: Path, spec: StateSpec) -> None:
    layout = StateLayout((KEY, spec))
    write_package(tmp_path / "p", toy_graph(), toy_weights(), states=layout)
    refuse(r"layers\.1\.trace", lambda: Session.open(tmp_path / "p"))


def test_states_of_another_shape_are_no_crash(tmp_path: Path) -> None:
    wide = StateSpec(TRACE.name, ("batch", 9), "float32", "replace")
    write_package(tmp_path / "p", toy_graph(), toy_weights(), states=StateLayout((KEY, wide)))
    refuse("onnxruntime could not run", lambda: Session.open(tmp_path / "p").prefill([1, 2]))


def test_a_missing_onnxruntime_names_the_extra(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refuse(r"pip install 'edgewright\[cpu\]'", lambda: Session.open(toy))


def test_an_old_onnxruntime_is_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.load_onnxruntime(), "__version__", "1.19.2")
    refuse("needs 1.20 or newer", lambda: Session.open(toy))


def test_a_failed_run_loses_replaced_states_only(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.open(toy)
    session.prefill([1, 2, 3])
    state = session.snapshot()
    expected = session.fork().decode(4)
    with monkeypatch.context() as broken:
        broken.setattr(
            type(session._engine), "run", lambda *_: (_ for _ in ()).throw(SessionError("no"))
        )
        with pytest.raises(SessionError):
            session.decode(4)
    refuse("reset or resume", lambda: session.decode(4))
    refuse("reset or resume", session.snapshot)
    session.resume(state)
    np.testing.assert_array_equal(session.decode(4), expected)
    session.reset()
    assert session.prefill([1, 2, 3]).shape[0] == 1


class TestLibraries:
    """Native code runs only when its hash is this machine's own, whatever the package says."""

    LIBRARY = b"\x7fELF, but no library at all"

    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("EDGEWRIGHT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(engine, "_warned", set())
        write_package(
            tmp_path / "p",
            toy_graph(),
            toy_weights(),
            states=toy_states(("append", "replace")),
            libraries={host_target(): self.LIBRARY},
        )
        return tmp_path / "p"

    def test_an_untrusted_library_is_never_loaded(
        self, package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        loaded: list[str] = []
        options = engine.load_onnxruntime().SessionOptions
        monkeypatch.setattr(
            options, "register_custom_ops_library", lambda _, path: loaded.append(path)
        )
        with caplog.at_level(logging.WARNING):
            first, second = Session.open(package), Session.open(package)
        assert first.kernels == second.kernels == "portable" and not loaded
        assert caplog.text.count("not built on this machine") == 1

    def test_a_trusted_library_is_loaded(
        self, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trust.record(hashlib.sha256(self.LIBRARY).hexdigest())
        loaded: list[str] = []
        options = engine.load_onnxruntime().SessionOptions
        monkeypatch.setattr(
            options, "register_custom_ops_library", lambda _, path: loaded.append(path)
        )
        assert Session.open(package).kernels == "native"
        assert loaded == [str(package / f"lib/{host_target()}/libops.so")]

    def test_one_that_cannot_be_loaded_leaves_the_bodies(
        self, package: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        trust.record(hashlib.sha256(self.LIBRARY).hexdigest())
        session = Session.open(package)
        assert session.kernels == "portable" and "cannot be loaded" in caplog.text
        assert session.logits([1]).shape == (1, 300)

    def test_a_tampered_library_is_an_error(self, package: Path) -> None:
        trust.record(hashlib.sha256(self.LIBRARY).hexdigest())
        path = package / f"lib/{host_target()}/libops.so"
        path.write_bytes(self.LIBRARY.swapcase())
        with pytest.raises(PackageError, match=r"is not what manifest\.json says"):
            Session.open(package)


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_torch_onnx_or_transformers_enters_the_process(toy: Path) -> None:
    program = f"""
import sys
from edgewright.runtime import Session
session = Session.open({str(toy)!r})
session.generate([1, 2, 3], max_new_tokens=3, temperature=1.0, seed=0)
banned = {{"torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors"}}
print(sorted(banned & {{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n" and done.stderr == ""


def test_importing_the_runtime_does_not_load_onnxruntime() -> None:
    program = "import sys, edgewright.runtime; print('onnxruntime' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr


def test_weights_are_mapped(tmp_path: Path) -> None:
    """The blob of the embedding appears among the process's mappings, and only so."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list mappings")
    package = write_toy(tmp_path / "p")
    session = Session.open(tmp_path / "p")
    session.logits([1, 2])
    mapped = maps.read_text()
    assert all(str(package.root / blob) in mapped for blob in package.manifest.variants[0].weights)
