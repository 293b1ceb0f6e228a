"""The few things the runtime needs of ONNX Runtime, typed; its errors come out as one line."""

from __future__ import annotations

import importlib
import mmap
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError

# Rows of weights and states start on a cache line, as vector loads like them.
_ALIGNMENT = 64
_MAPPED_BYTES = 1 << 17
_MESSAGE_LIMIT = 400

# A session's setting: the folder of the weights of a graph that is opened from bytes.
EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"

Array = NDArray[Any]


class OrtValue(Protocol):
    def data_ptr(self) -> int: ...


class Binding(Protocol):
    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None: ...
    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None: ...
    def get_outputs(self) -> Sequence[OrtValue]: ...


class NodeArg(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> Sequence[int | str | None]: ...


class OrtSession(Protocol):
    def io_binding(self) -> Binding: ...
    def run_with_iobinding(self, binding: Binding, run_options: object = None) -> None: ...
    def run(self, output_names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]: ...
    def get_inputs(self) -> Sequence[NodeArg]: ...
    def get_outputs(self) -> Sequence[NodeArg]: ...


def load_onnxruntime() -> Any:
    """The module, whichever of its flavours is installed."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({one_line(error)})"
        raise SessionError(
            f"onnxruntime cannot be imported{reason}; install it with pip install 'edgewright[cpu]'"
        ) from error


def one_line(error: BaseException) -> str:
    """ONNX Runtime's messages run over many lines and name its own sources; keep what tells."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"


def zeros(shape: Sequence[int], dtype: str) -> Array:
    """Aligned, zeroed, and only in memory once it is touched.

    Large arrays are mapped, because an allocator keeps what it is given back, and clears by writing
    what it gives out again.
    """
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if size >= _MAPPED_BYTES:
        raw = np.frombuffer(_map_memory(size), dtype=np.uint8)
    else:
        block = np.zeros(size + _ALIGNMENT, dtype=np.uint8)
        offset = -block.ctypes.data % _ALIGNMENT
        raw = block[offset : offset + size]
    return raw.view(kind).reshape(tuple(shape))


def _map_memory(size: int) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(-1, size)
    # Private: what a forked process writes is its own.
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def wrap(array: Array) -> OrtValue:
    """An OrtValue over the array's own memory; it keeps the array alive."""
    value: OrtValue = load_onnxruntime().OrtValue.ortvalue_from_numpy(array)
    return value
