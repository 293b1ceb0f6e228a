"""The emulated arm64's worker, here on this machine's own processor; its root's errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewright.custom_ops.compiler import build, buildable_host
from lab import LabError, apt, arm64_worker, neon
from tests.custom_ops.single_op import SingleOp

Arrays = dict[str, np.ndarray]
STATE = np.zeros((1, 2, 3), np.float32)
CONVOLUTION = SingleOp(
    "CausalConv",
    {
        "x": np.ones((1, 4, 3), np.float32),
        "weight": np.ones((3, 3), np.float32),
        "bias": np.zeros(3, np.float32),
        "state": STATE,
        "length": np.array([4]),
    },
    {"activation": "none"},
)


class Worker:
    def __init__(self) -> None:
        command = [sys.executable, str(Path(arm64_worker.__file__))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request: dict[str, Any], arrays: Arrays | None = None) -> Arrays:
        assert self.process.stdin is not None and self.process.stdout is not None
        message = {"request": arm64_worker.text(request), **(arrays or {})}
        arm64_worker.send(self.process.stdin, message)
        reply = arm64_worker.receive(self.process.stdout)
        assert reply is not None
        return reply


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(10) == 0


def open_convolution(worker: Worker, isa: str) -> Arrays:
    import onnx_ir as ir

    model = ir.serde.serialize_model(CONVOLUTION.model(body=False)).SerializeToString()
    request = {"do": "open", "session": 0, "isa": isa, "folder": "", "threads": 1}
    request["library"] = str(build(buildable_host()).path)
    return worker.ask(request, {"model": np.frombuffer(model, np.uint8)})


def test_a_session_runs_in_place_and_apart(worker: Worker) -> None:
    assert open_convolution(worker, "scalar") == {}
    want = CONVOLUTION.run(build(buildable_host()))
    assert want[0][0, :, 0].tolist() == [1, 2, 3, 3]
    for pairs in ([], [["state", "state_out"]]):
        request = {"do": "run", "session": 0, "pairs": pairs}
        found = worker.ask(request, dict(CONVOLUTION.inputs))
        for index, output in enumerate(want):
            np.testing.assert_array_equal(found[str(index)], output)
    assert worker.ask({"do": "close", "session": 0}) == {}


def test_an_error_comes_back_as_text_and_the_worker_lives_on(worker: Worker) -> None:
    reply = open_convolution(worker, "abacus")
    assert "names an instruction set" in json.loads(reply["error"].tobytes())
    assert open_convolution(worker, "scalar") == {}


def test_a_machine_without_apt_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apt.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["lab.neon", "--folder", str(tmp_path)])
    assert neon.main() == 1
    said = capsys.readouterr().err
    assert said == "lab.neon: this part is made with apt on Debian; run this on such a machine\n"


def test_what_a_command_says_last_is_the_error() -> None:
    script = "import sys; sys.exit('first\\nthe reason')"
    with pytest.raises(LabError, match=r"^no download: the reason$"):
        apt.run([sys.executable, "-c", script], "no download")
