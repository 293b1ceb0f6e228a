"""The provider lab without its installations: what apt plans, what a case and an answer say, how an
environment that cannot be made or gives no answer is told, and that no process is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgewright.runtime import Session
from lab import LabError, contained, one_op, selftest
from lab.apt import packages_changed
from lab.case import Answer, difference, read_answer, write_case
from lab.environments import ENVIRONMENTS, Command, Environment, Job
from lab.parts import Part, ensure, javascript
from tests.runtime import toy_packages

REFUSAL = "... but fallback to CPU EP has been explicitly disabled by the user."
PLAN = """NOTE: This is only a simulation!
Inst libnew (2.0 Debian:12/stable [amd64])
Remv gone [1.0]
Inst libold [1.0] (1.1 Debian:12/stable [amd64])
Conf libnew (2.0 Debian:12/stable [amd64])
"""


def test_a_plan_that_changes_the_system_is_seen() -> None:
    assert packages_changed(PLAN) == ["gone", "libold"]
    assert packages_changed("Inst libnew (2.0 Debian:12/stable [amd64])\n") == []


def test_a_part_is_installed_once_for_its_versions(tmp_path: Path) -> None:
    made: list[Path] = []
    part = Part("thing", {"thing": "1"}, made.append)
    folder = ensure(part, tmp_path)
    (folder / "left").touch()
    assert ensure(part, tmp_path) == folder and made == [folder]
    ensure(replace(part, pins={"thing": "2"}), tmp_path)
    assert made == [folder, folder] and not (folder / "left").exists()
    # What it put into the system has gone.
    ensure(replace(part, pins={"thing": "2"}, is_present=lambda: False), tmp_path)
    assert len(made) == 3


def test_a_part_that_failed_is_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise LabError("no network")

    for _ in range(2):
        with pytest.raises(LabError, match="no network"):
            ensure(Part("thing", {}, fail), tmp_path)


def test_every_version_is_pinned_and_no_address_is() -> None:
    here = Path(javascript.__file__).parent
    locked = json.loads((here / "package-lock.json").read_text())
    wanted = json.loads((here / "package.json").read_text())["dependencies"]
    for name, number in wanted.items():
        assert locked["packages"][f"node_modules/{name}"]["version"] == number
    assert all(
        entry["integrity"].startswith("sha512-") and "resolved" not in entry
        for path, entry in locked["packages"].items()
        if path
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("make", one_op.CASES, ids=lambda make: make.__name__)
def test_onnx_runtime_here_agrees_with_numpy(
    make: Callable[[np.dtype[np.generic]], one_op.OneOp], dtype: str, tmp_path: Path
) -> None:
    case = make(np.dtype(dtype))
    case.write(tmp_path / "model.onnx")
    external = (one_op.EXTERNAL,) if case.is_external else ()
    write_case(tmp_path / "case", tmp_path / "model.onnx", case.inputs, external)
    cpu = ENVIRONMENTS["cpu"]
    answer = cpu.run(cpu.prepare(tmp_path), tmp_path / "case")
    assert selftest.judged(case, cpu.can_fall_back, selftest.WITHIN[dtype], answer) == ""
    assert set(answer.nodes) == {"CPUExecutionProvider"}


def test_what_an_answer_must_be() -> None:
    case = one_op.determinant(np.dtype(np.float32))
    right = Answer({"y": case.wanted})
    assert selftest.judged(case, True, 1e-4, Answer(error=REFUSAL)) == ""
    assert "it was to be refused; it ran" in selftest.judged(case, True, 1e-4, right)
    assert "no adapter" in selftest.judged(case, True, 1e-4, Answer(error="no adapter"))
    assert selftest.judged(case, False, 1e-4, right) == ""
    assert selftest.judged(case, False, 1e-4, Answer(error=REFUSAL)) == REFUSAL
    assert "away" in selftest.judged(case, False, 1e-4, Answer({"y": case.wanted + 1}))
    assert "were wanted" in selftest.judged(case, False, 1e-4, Answer({"z": case.wanted}))


def test_a_difference_is_of_values_of_one_kind() -> None:
    wanted = np.array([1, 2, 3], np.float32)
    assert difference({"y": wanted + 0.5}, {"y": wanted}) == 0.5
    assert difference({"y": wanted * np.nan}, {"y": wanted}) == float("inf")
    for other in (wanted.astype(np.float64), wanted[:2]):
        with pytest.raises(LabError, match="was wanted"):
            difference({"y": other}, {"y": wanted})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"outputs": {"y": {"dtype": "object", "shape": [1], "file": "y"}}, "nodes": {}}',
        '{"outputs": {"y": {"dtype": "int8", "shape": [1], "file": "../y"}}, "nodes": {}}',
        '{"outputs": {"y": {"dtype": "int8", "shape": [9], "file": "y"}}, "nodes": {}}',
    ],
)
def test_an_answer_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "y").write_bytes(b"1")
    (tmp_path.parent / "y").write_bytes(b"1")
    (tmp_path / "answer.json").write_text(text)
    with pytest.raises(LabError, match="not an answer"):
        read_answer(tmp_path)


def test_a_case_has_types_that_every_runner_knows(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="complex64 is not a type of a case"):
        write_case(tmp_path / "case", b"", {"x": np.zeros(1, np.complex64)})


def environment(script: str, seconds: float = 60) -> Environment:
    def command(folders: object, job: Job) -> Command:
        return Command([sys.executable, "-c", script, job.answered, *job.words])

    return Environment("thing", "QNNExecutionProvider", (), command, (), seconds=seconds)


def test_an_environment_that_gives_no_answer_says_why(tmp_path: Path) -> None:
    crash = environment("import sys; sys.exit('first\\nthe reason')").run({}, tmp_path)
    assert crash.error == "no answer; exit status 1, and it said: the reason"
    late = environment("import time; time.sleep(60)", seconds=0.1).run({}, tmp_path)
    assert late.error == "no answer in 0 s"


def test_a_package_is_run_by_our_own_runtime(tmp_path: Path) -> None:
    package = toy_packages.write_toy(tmp_path / "toy")
    cpu = ENVIRONMENTS["cpu"]
    ids = [5, 17, 299, 2, 41, 0]
    answer = cpu.run_package(cpu.prepare(tmp_path), package.root, "cpu", ids, 4)
    session = Session.open(package.root)
    assert answer.error == "" and answer.logits is not None
    np.testing.assert_allclose(answer.logits, session.logits(ids)[3:], rtol=0, atol=1e-4)
    assert list(answer.tokens) == session.generate(ids[:4], max_new_tokens=3)
    assert set(answer.nodes) == {"CPUExecutionProvider"}
    none = cpu.run_package(cpu.prepare(tmp_path), package.root, "webgpu", ids, 4)
    assert "no variant for webgpu" in none.error and none.logits is None


def test_a_node_that_ran_elsewhere_is_no_answer(tmp_path: Path) -> None:
    told = {"outputs": {}, "nodes": {"QNNExecutionProvider": ["MatMul"], "Other": ["Det", "Det"]}}
    script = f"import sys; open(sys.argv[1] + '/answer.json', 'w').write({json.dumps(told)!r})"
    answer = environment(script).run({}, tmp_path)
    assert answer.error.endswith(
        "not all nodes ran on QNNExecutionProvider: QNNExecutionProvider has 1, Other has 2"
    )
    assert not answer.is_refused


def test_what_cannot_be_installed_is_told_as_not_run(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise LabError("the archive has no wine64")

    part = Part("wine", {}, fail)
    reports = [
        selftest.check(replace(environment(""), parts=(part,)), tmp_path),
        selftest.Report("other", passed=["a", "b"], failed={"c": "wrong\nat length"}),
    ]
    assert list(selftest.table(reports)) == [
        "environment     installed   cases passed",
        "thing           not run     the archive has no wine64",
        "other           yes         2 of 3",
        "                c: wrong",
        "lab: 2 passed, 1 failed; 1 of 2 environments not run",
    ]


ESCAPE = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep({here})
    os._exit(0)
os.wait()
time.sleep({after})
"""


@pytest.mark.parametrize(("seconds", "after", "status"), [("60", "0", 0), ("0.5", "60", 124)])
@pytest.mark.skipif(sys.platform != "linux", reason="the lab runs on Linux")
def test_no_process_gets_away(seconds: str, after: str, status: int) -> None:
    script = ESCAPE.format(here=600, after=after)
    command = [sys.executable, contained.__file__, seconds, sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    if done.stdout:  # on a busy machine the time may be up before it began
        with pytest.raises(ProcessLookupError):
            os.kill(int(done.stdout), 0)
