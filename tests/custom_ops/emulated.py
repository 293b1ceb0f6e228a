"""Sessions in an emulated arm64 process: what `python -m lab.neon` runs the sweeps with.

Without EDGEWRIGHT_ARM64_ROOT, which it sets, nothing here is used.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.custom_ops.compiler import Library, compiled_for
from lab import arm64_worker
from lab.parts.arm64 import PROCESSORS, Arm64Root

ROOT = os.environ.get("EDGEWRIGHT_ARM64_ROOT")
NOTES = os.environ.get("EDGEWRIGHT_ARM64_NOTES")  # a folder, for a file <isa>/<op> of each sweep
TARGET, ISAS = "linux-aarch64", tuple(PROCESSORS)
Array = NDArray[Any]

_numbers = count()


def is_sweep(item: pytest.Item) -> bool:
    return "isa" in getattr(item, "fixturenames", ())


def best_isa(processor: str, library: Library) -> str:
    """What the library chooses for itself on the processor of an instruction set."""
    assert ROOT is not None
    code = (
        f"import ctypes; isa = ctypes.CDLL({str(library.path)!r}).edgewright_isa;"
        "isa.restype = ctypes.c_char_p; print(isa().decode())"
    )
    command = Arm64Root(Path(ROOT)).python(processor, "-c", code)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@cache
def _process(isa: str) -> subprocess.Popen[bytes]:
    """One of each for each test process; it ends when its stdin does."""
    assert ROOT is not None
    command = Arm64Root(Path(ROOT)).python(isa, str(Path(arm64_worker.__file__)))
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _ask(isa: str, request: dict[str, Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
    process = _process(isa)
    assert process.stdin is not None and process.stdout is not None
    arm64_worker.send(process.stdin, {"request": arm64_worker.text(request), **arrays})
    reply = arm64_worker.receive(process.stdout)
    if reply is None:
        raise AssertionError(f"the arm64 process died: exit code {process.wait()}")
    if "error" in reply:
        raise RuntimeError(json.loads(reply["error"].tobytes()))
    return reply


class Session:
    """As much of an InferenceSession as sweeps use."""

    def __init__(self, isa: str, number: int) -> None:
        self._isa, self._number = isa, number

    def run(
        self,
        outputs: None,
        feed: Mapping[str, Array],
        pairs: Sequence[tuple[str, str]] = (),
    ) -> list[Array]:
        request = {"do": "run", "session": self._number, "pairs": list(pairs)}
        reply = _ask(self._isa, request, feed)
        return [reply[str(index)] for index in range(len(reply))]

    def __del__(self) -> None:
        if _process(self._isa).poll() is None:
            _ask(self._isa, {"do": "close", "session": self._number}, {})


def open_session(
    op: str, model: bytes, library: Library, isa: str, folder: Path | None, threads: int
) -> Session:
    if op not in {spec.name for spec in compiled_for(isa)}:
        pytest.skip(f"{op} has no kernel of its own for {isa}")
    if NOTES:
        (Path(NOTES) / isa).mkdir(exist_ok=True)
        (Path(NOTES) / isa / op).touch()
    number = next(_numbers)
    request = {
        "do": "open",
        "session": number,
        "isa": isa,
        "library": str(library.path),
        "folder": "" if folder is None else str(folder),
        "threads": threads,
    }
    _ask(isa, request, {"model": np.frombuffer(model, np.uint8)})
    return Session(isa, number)


def call_native(isa: str, library: str, name: str, arguments: Sequence[Array | int]) -> None:
    """As arm64_worker's own, which it asks for; the arrays are changed here."""
    arrays = {str(i): each for i, each in enumerate(arguments) if isinstance(each, np.ndarray)}
    order = [each if isinstance(each, int) else str(i) for i, each in enumerate(arguments)]
    request = {"do": "call", "library": library, "name": name, "arguments": order}
    for key, changed in _ask(isa, request, arrays).items():
        arrays[key][...] = changed
