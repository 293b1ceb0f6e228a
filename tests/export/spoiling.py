"""A package with its graph changed, for validation to find out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx


def respoken(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy whose graph was changed, and whose manifest vouches for it all the same."""
    shutil.copytree(source, target)
    path = target / "variants" / "cpu" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    data = model.SerializeToString()
    path.write_bytes(data)
    manifest = json.loads((target / "manifest.json").read_text())
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest["files"]["variants/cpu/model.onnx"] = entry
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def node(model: onnx.ModelProto, op: str, index: int) -> onnx.NodeProto:
    return [each for each in model.graph.node if each.op_type == op][index]
