"""What the driver under Wine is told to do, and what is read of what it did, without Wine."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from edgewright.artifacts.states import StateLayout, StateSpec
from lab import one_op, selftest
from lab.case import read_answer, write_case
from lab.environments import ENVIRONMENTS, RUNNERS, Job

LAYOUT = StateLayout(
    (
        StateSpec("keys", ("batch", 2, "capacity", 4), "float16", "append"),
        StateSpec("tail", ("batch", 3), "float32", "replace"),
    )
)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RUNNERS))
    return importlib.import_module("windows")


def here(path: str) -> Path:
    assert path.startswith("Z:\\") and "/" not in path
    return Path(path.removeprefix("Z:").replace("\\", "/"))


def take(windows: ModuleType, lines: Sequence[str]) -> list[list[str]]:
    """The driver's part, by ONNX Runtime here."""
    options, feed, found = ort.SessionOptions(), {}, {}
    said = []
    for verb, *words in (line.split("\t") for line in lines):
        if verb == "option":
            options.add_session_config_entry(words[0], str(here(words[1])))
        elif verb == "profile":
            options.enable_profiling = True
            options.profile_file_prefix = str(here(words[0]))
        elif verb == "open":
            session = ort.InferenceSession(here(words[0]).read_bytes(), options)
            said.append(["opened", "0.125"])
        elif verb == "tensor":
            name, kind, file, *sizes = words
            raw = np.frombuffer(here(file).read_bytes(), windows._NAMES[int(kind)])
            feed[name] = raw.reshape([int(size) for size in sizes])
        elif verb == "run":
            found = dict(zip(words, session.run(words, feed), strict=True))
        elif verb == "write":
            array = found[words[0]]
            here(words[1]).write_bytes(array.tobytes())
            kind = windows._TYPES[array.dtype.name]
            said.append([words[0], str(kind), *map(str, array.shape)])
    session.end_profiling()
    return said


@pytest.mark.parametrize("make", one_op.CASES, ids=lambda make: make.__name__)
def test_the_steps_of_a_case(
    make: Callable[[np.dtype[np.generic]], one_op.OneOp],
    windows: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = make(np.dtype(np.float32))
    case.write(tmp_path / "model.onnx")
    external = (one_op.EXTERNAL,) if case.is_external else ()
    write_case(tmp_path / "case", tmp_path / "model.onnx", case.inputs, external)
    monkeypatch.setattr(windows.Steps, "take", lambda steps, wine: take(windows, steps.lines))
    answered = tmp_path / "answer"
    answered.mkdir()
    told = windows.answer_case(answered, tmp_path / "case", [])
    (answered / "answer.json").write_text(json.dumps(told))
    answer = read_answer(answered)
    assert selftest.judged(case, False, selftest.WITHIN["float32"], answer) == ""
    assert answer.nodes == {"CPUExecutionProvider": (case.op,)}
    assert answer.measured == {"open_seconds": 0.125}


def test_the_states_of_a_conversation_go_from_run_to_run(
    windows: ModuleType, tmp_path: Path
) -> None:
    steps = windows.Steps(tmp_path)
    conversation = windows.Conversation(steps, LAYOUT, 8)
    conversation.read([5, 6, 7], "rows.bin")
    conversation.go_on([9], "rows.bin")
    conversation.choose("rows.bin")
    runs: list[dict[str, object]] = []
    feed: dict[str, object] = {}
    for verb, *words in (line.split("\t") for line in steps.lines):
        if verb == "tensor":
            name, kind, file, *sizes = words
            raw = np.frombuffer(here(file).read_bytes(), windows._NAMES[int(kind)])
            feed[name] = raw.reshape([int(size) for size in sizes]).tolist()
        elif verb == "run":
            assert words == ["logits", "present.keys", "present.tail"]
            runs.append(dict(feed))
        elif verb in ("pass", "choose"):
            feed[words[1]] = words[0]
    zeros = np.zeros((1, 2, 8, 4)).tolist()
    first, second, third = runs
    assert first["past.keys"] == zeros and first["past.tail"] == [[0.0, 0.0, 0.0]]
    assert (second["past.keys"], third["past.tail"]) == ("present.keys", "present.tail")
    assert [run["input_ids"] for run in runs] == [[[5, 6, 7]], [[9]], "logits"]
    assert [run["start"] for run in runs] == [[0], [3], [4]]
    assert [run["length"] for run in runs] == [[3], [1], [1]]
    assert [run["logit_index"] for run in runs] == [[[2]], [[0]], [[0]]]


def test_an_op_that_ran_as_its_body_is_seen(windows: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("BlockMatMul", ["y", "w"], ["z"], domain="ai.edgewright"),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [], [])), path)
    assert windows.all_by_kernels(path, {"CPU": ["Add", "BlockMatMul"]})
    assert not windows.all_by_kernels(path, {"CPU": ["Add", "MatMul"]})


def test_a_node_counts_once_however_often_it_ran(windows: ModuleType, tmp_path: Path) -> None:
    def event(name: str, index: str, op: str) -> dict[str, object]:
        args = {"provider": "CPU", "op_name": op, "node_index": index}
        return {"cat": "Node", "name": name, "args": args}

    events = [event("a", "0", "Add"), event("b", "1", "Add"), event("a", "0", "Add")]
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps([{"cat": "Session", "name": "run"}, *events]))
    assert windows.ran(profile) == {"CPU": ["Add", "Add"]}


def test_the_driver_says_what_went_wrong(
    windows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "wine.py"
    stand_in.write_text("import sys; sys.exit('starting\\nrun: no such input')")
    monkeypatch.setattr(windows, "_WINE", stand_in)
    with pytest.raises(RuntimeError, match=r"^exit status 1 under Wine: run: no such input$"):
        windows.Steps(tmp_path).take(["prefix", "driver", "library"])


def test_how_the_environment_calls_its_runner() -> None:
    environment = ENVIRONMENTS["cpu-windows"]
    folders = {part.name: Path("/parts") / part.name for part in environment.parts}
    words = ("cpu", "1,2,3", "2")
    command = environment.command(folders, Job("package", "/answer", "/package", words))
    assert command.words[2:7] == ("package", "/answer", "/package", *words[:2])
    assert [Path(word).name for word in command.words[-3:]] == [
        "prefix",
        "ort_case.exe",
        "onnxruntime.dll",
    ]
