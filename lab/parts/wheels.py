"""Python environments with the flavours of ONNX Runtime that overwrite one another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from lab.apt import run
from lab.parts import Part

# What our runtime imports beside ONNX Runtime; as they are here.
RUNTIME = {name: version(name) for name in ("jinja2", "markupsafe", "numpy", "tokenizers")}


def python(folder: Path) -> str:
    return str(folder / "bin/python")


def install_wheels(pins: Mapping[str, str], arguments: list[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    chosen = [f"{name}=={number}" for name, number in pins.items()]
    # What a runner imports is named; what else these wheels ask for, it does not need.
    run([*pip, "--no-deps", "--only-binary=:all:", *chosen], "pip cannot install")


def _part(name: str, pins: Mapping[str, str]) -> Part:
    def install(folder: Path) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "no Python environment")
        install_wheels(pins, ["--python", python(folder), "install"])

    return Part(name, pins, install)


WEBGPU = _part("webgpu-python", {"onnxruntime-webgpu": "1.27.0", **RUNTIME})
QNN = _part("qnn-python", {"onnxruntime": "1.31.1", "onnxruntime-qnn": "2.7.0", **RUNTIME})
