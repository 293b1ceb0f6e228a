"""The program that takes ONNX Runtime for Windows through a case, compiled here by pip's zig."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

from edgewright.artifacts.user_dirs import cache_dir
from lab.apt import run
from lab.parts import Part

_SOURCE = Path(__file__).parents[1] / "runners/ort_case.cc"
_INCLUDED = Path(__file__).parents[2] / "custom_ops"
_FLAGS = (
    "-target",
    "x86_64-windows-gnu",
    "-std=c++20",
    "-O1",
    "-s",
    "-fno-exceptions",
    "-fno-rtti",
)
_WARNINGS = ("-Wall", "-Wextra", "-Werror")


def program(folder: Path) -> str:
    return str(folder / "ort_case.exe")


def _install(folder: Path) -> None:
    zig = cache_dir() / "kernels/zig"  # the kernels' compiler keeps its results there, too
    caches = [f"ZIG_{name.upper()}_CACHE_DIR={zig / name}" for name in ("global", "local")]
    command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, *_WARNINGS, f"-I{_INCLUDED}"]
    run(
        ["env", *caches, *command, "-o", program(folder), str(_SOURCE)],
        "zig cannot compile the driver for Windows",
    )


def _sources() -> str:
    read = [path.read_bytes() for path in (_SOURCE, _INCLUDED / "native/abi.h")]
    return hashlib.sha256(b"".join(read)).hexdigest()


PART = Part("windows-driver", {"ziglang": version("ziglang"), "sources": _sources()}, _install)
