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

from edgewright.custom_ops.compiler import Library
from lab import arm64_worker
from lab.arm64_root import Arm64Root

ROOT = os.environ.get("EDGEWRIGHT_ARM64_ROOT")
NOTES = os.environ.get("EDGEWRIGHT_ARM64_NOTES")  # a folder, for a file named like each op swept
TARGET, ISA = "linux-aarch64", "neon"
Array = NDArray[Any]

_numbers = count()


def is_sweep(item: pytest.Item) -> bool:
    return "isa" in getattr(item, "fixturenames", ())


@cache
def _process() -> subprocess.Popen[bytes]:
    """One for each test process; it ends when its stdin does."""
    assert ROOT is not None
    command = Arm64Root(Path(ROOT)).python(str(Path(arm64_worker.__file__)))
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _ask(request: dict[str, Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
    process = _process()
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

    def __init__(self, number: int) -> None:
        self._number = number

    def run(
        self,
        outputs: None,
        feed: Mapping[str, Array],
        pairs: Sequence[tuple[str, str]] = (),
    ) -> list[Array]:
        request = {"do": "run", "session": self._number, "pairs": list(pairs)}
        reply = _ask(request, feed)
        return [reply[str(index)] for index in range(len(reply))]

    def __del__(self) -> None:
        if _process().poll() is None:
            _ask({"do": "close", "session": self._number}, {})


def open_session(
    op: str, model: bytes, library: Library, folder: Path | None, threads: int
) -> Session:
    if NOTES:
        (Path(NOTES) / op).touch()
    number = next(_numbers)
    request = {
        "do": "open",
        "session": number,
        "isa": ISA,
        "library": str(library.path),
        "folder": "" if folder is None else str(folder),
        "threads": threads,
    }
    _ask(request, {"model": np.frombuffer(model, np.uint8)})
    return Session(number)


def call_native(library: str, name: str, arguments: Sequence[Array | int]) -> None:
    """As arm64_worker's own, which it asks for; the arrays are changed here."""
    arrays = {str(i): each for i, each in enumerate(arguments) if isinstance(each, np.ndarray)}
    order = [each if isinstance(each, int) else str(i) for i, each in enumerate(arguments)]
    request = {"do": "call", "library": library, "name": name, "arguments": order}
    for key, changed in _ask(request, arrays).items():
        arrays[key][...] = changed
