"""The compiler driver: its cache, its errors, and what the libraries need of a device: nothing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgewright.artifacts import trust
from edgewright.artifacts.errors import ToolchainError
from edgewright.artifacts.user_dirs import cache_dir
from edgewright.custom_ops import OPS, compiler
from edgewright.custom_ops.compiler import TARGETS, Library, build, buildable_host
from tests.custom_ops import emulated

MAGIC = {"linux": b"\x7fELF", "macos": b"\xcf\xfa\xed\xfe", "windows": b"MZ"}
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


# Six libraries take minutes to compile: `make targets` asks for all of them.
ASKED = TARGETS if os.environ.get("EDGEWRIGHT_TARGETS") == "all" else (buildable_host(),)


@pytest.mark.parametrize("target", ASKED)
def test_every_target_is_built(target: str) -> None:
    system, arch = target.split("-")
    made = build(target)
    assert made.data.startswith(MAGIC[system])
    assert trust.is_trusted(made.sha256)
    assert b"RegisterCustomOps" in made.data
    for spec in OPS.values():
        if (Path(compiler.__file__).parent / spec.function / "kernel.cc").is_file():
            assert spec.name.encode() in made.data
    if system == "linux":
        assert struct.unpack_from("<H", made.data, 18)[0] == ELF_MACHINE[arch]


@pytest.mark.parametrize("target", [t for t in ASKED if t.startswith("linux")])
def test_linux_libraries_need_no_other(target: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on this machine")
    command = ["readelf", "--wide", "--dynamic", "--dyn-syms", str(build(target).path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NEEDED" not in listing
    symbols = [
        line.split() for line in listing.splitlines() if " FUNC " in line or "NOTYPE" in line
    ]
    names = {line[7] for line in symbols if len(line) > 7}
    assert names == {"RegisterCustomOps", "edgewright_isa"}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache to spoil: the usual one's libraries are mapped by every process that runs."""
    zig = cache_dir() / "kernels" / "zig"
    monkeypatch.setenv("EDGEWRIGHT_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "zig").symlink_to(zig)  # zig has compiled all this before
    return tmp_path


def test_a_build_is_found_again_and_a_changed_one_is_made_anew(
    library: Library, own_cache: Path
) -> None:
    made = build(buildable_host())
    written = made.path.stat().st_mtime_ns
    again = build(buildable_host())
    assert (again.path, again.sha256) == (made.path, library.sha256)
    assert again.path.stat().st_mtime_ns == written
    made.path.write_bytes(b"something else")
    assert build(buildable_host()).data == library.data


def test_two_processes_build_the_same_library_at_once(library: Library, own_cache: Path) -> None:
    code = (
        "from edgewright.custom_ops.compiler import build, buildable_host;"
        "print(build(buildable_host()).sha256)"
    )
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].strip() for process in running]
    assert printed == [library.sha256] * 2
    left = [path.name for path in own_cache.glob("kernels/linux*/*/*")]
    assert left == [library.path.name] or not sys.platform.startswith("linux")


def test_the_library_names_an_instruction_set_it_has(library: Library) -> None:
    best = ctypes.CDLL(str(library.path)).edgewright_isa
    best.restype = ctypes.c_char_p
    assert best().decode() in compiler.TARGETS_BY_NAME[buildable_host()].isas


@pytest.mark.skipif(not emulated.ROOT, reason="another machine has but one processor")
def test_each_processor_gets_the_best_instruction_set_it_has(isa: str, library: Library) -> None:
    assert emulated.best_isa(isa, library) == isa


def test_kernels_that_multiply_bytes_are_found_by_what_they_include() -> None:
    names = {spec.name for spec in compiler.compiled_for("neon_dot")}
    assert names == {"BlockMatMul", "GatedMatMul", "RoutedExperts"}
    assert len(compiler.compiled_for("neon")) == len(compiler.compiled_ops())


def test_an_unknown_target_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ToolchainError, match="no target 'plan9-vax'; choose from linux-x86_64"):
        build("plan9-vax")


def test_without_zig_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(compiler, "version", missing)
    with pytest.raises(ToolchainError, match=r"ziglang is not installed; pip install"):
        build(buildable_host())


def test_a_compile_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Library
) -> None:
    source = tmp_path / "broken.cc"
    source.write_text("#error this op is broken\n")
    target = compiler.TARGETS_BY_NAME[buildable_host()]
    unit = compiler.Unit(source, next(iter(target.isas)))
    with pytest.raises(ToolchainError, match="this op is broken") as caught:
        compiler.compile_units(target, [unit], tmp_path, library.path.parents[2] / "zig")
    assert "\n" not in str(caught.value)


def test_a_session_may_ask_for_no_instruction_set_that_is_not_there(
    library: Library, single_op: type
) -> None:
    ones = np.ones((1, 1), np.float32)
    op = single_op("BlockMatMul", {"x": ones, "weight": ones})
    with pytest.raises(Exception, match=r"edgewright\.isa names an instruction set"):
        op.run(library, isa="abacus")
