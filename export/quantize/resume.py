"""A folder that a quantisation keeps its work in: what is finished goes in, and a run that was
killed takes it out again. Every file is written beside its name and then renamed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgewright.artifacts.errors import ExportError, PackageError
from edgewright.artifacts.json_text import Json
from edgewright.artifacts.user_dirs import cache_dir
from edgewright.custom_ops.packed_weights import QuantizedMatrix, pack, unpack

_RUN = "run.json"
# A change of how weights are quantised makes what an older version began worthless.
_VERSION = 1


class WorkFolder:
    def __init__(self, path: Path | None, made_of: Mapping[str, Json]) -> None:
        """`made_of`: everything that the result depends on."""
        text = json.dumps({"version": _VERSION, **made_of}, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.path = path or cache_dir() / "quantize" / self.identity[:24]
        run = self.path / _RUN
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if run.is_file():
                self._check(run)
            elif any(self.path.iterdir()):
                raise ExportError(
                    f"{self.path} is not the folder of a quantisation: choose another"
                )
            else:
                self._write(run, json.dumps({"identity": self.identity}).encode())
        except OSError as error:
            raise ExportError(f"{self.path} cannot be written: {error.strerror}") from None

    def _check(self, run: Path) -> None:
        try:
            found = json.loads(run.read_bytes()).get("identity")
        except (ValueError, AttributeError):
            found = None
        if found != self.identity:
            raise ExportError(
                f"{self.path} holds the work of another checkpoint, text or set of options:"
                " remove it, or choose another folder"
            )

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    # Blobs

    def blob(self, stage: str, key: str) -> Path:
        return self.path / stage / f"{key}.blob"

    def save_stack(self, stage: str, key: str, stack: tuple[QuantizedMatrix, ...]) -> None:
        self._write(self.blob(stage, key), pack(stack).tobytes())

    def load_stack(self, stage: str, key: str) -> tuple[QuantizedMatrix, ...] | None:
        blob = self.read_blob(stage, key)
        try:
            return None if blob is None else unpack(blob)
        except PackageError:
            return None  # a disk's mistake; it is made again

    def read_blob(self, stage: str, key: str) -> NDArray[np.uint8] | None:
        path = self.blob(stage, key)
        return np.fromfile(path, np.uint8) if path.is_file() else None

    # Tensors and settings

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        path = self.path / f"{name}.safetensors"
        partial = path.with_suffix(".partial")
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial)
        partial.replace(path)

    def load_tensors(self, name: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self.path / f"{name}.safetensors")
        except (OSError, SafetensorError):
            return None

    def save_json(self, name: str, value: Json) -> None:
        self._write(self.path / f"{name}.json", json.dumps(value).encode())

    def load_json(self, name: str) -> Json:
        try:
            found: Json = json.loads((self.path / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(data)
        partial.replace(path)
