"""The JavaScript driver in Node, on the lab's onnxruntime-node and onnxruntime-web: it computes
what the Python runtime does, and refuses what that refuses."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_packages

from edgewright import artifacts
from edgewright.artifacts import Package
from edgewright.artifacts.user_dirs import cache_dir
from edgewright.runtime import Session
from edgewright.runtime.sampling import Sampling
from lab.parts import javascript
from tests.artifacts.test_manifest import (
    GOLDEN,
    PATHS,
    WRONG_FIELDS,
    WRONG_REFERENCES,
    _rename_graph,
)

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "runtime/javascript"
LAB = cache_dir() / "lab" / javascript.PART.name
IDS = [5, 17, 299, 2, 41, 0, 5, 8, 250, 3, 9]
ANOTHER = "ab" * 32
# What JSON.parse tells nobody: 12.0 is 12, and half a surrogate pair is a character.
UNTOLD = ("model.layers is 12.0", "half a surrogate pair")

needs_node = pytest.mark.skipif(
    not Path(javascript.node(LAB)).is_file(), reason="the lab's Node is not installed: make lab"
)
Answers = list[dict[str, Any]]
Drive = Callable[..., Answers]


def _node(request: object) -> Answers:
    command = [javascript.node(LAB), "tests/runtime/drive.mjs", str(DRIVER)]
    done = subprocess.run(
        [*command, str(LAB / "node_modules")],
        cwd=ROOT,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: Answers = json.loads(done.stdout)
    return answers


def drive(source: object, *calls: list[object], **options: object) -> Answers:
    """What opening answers, and then each call."""
    return _node({"source": str(source), "options": options, "calls": calls})


def values(answer: dict[str, Any]) -> Any:
    assert "error" not in answer, answer
    return answer["value"]


def refusal(package: Path, **options: object) -> str:
    (told,) = drive(package, ["logits", [IDS]], **options)
    message: str = told["message"]
    assert "\n" not in message and len(message) < 600
    return message


def logits(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array(values(answer), np.float32).reshape(-1, toy_packages.VOCAB)


def error(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / max(1.0, float(wanted.std())))


@needs_node
@pytest.mark.parametrize("onnxruntime", ["onnxruntime-node", "onnxruntime-web"])
def test_logits_are_those_of_the_model(any_toy: Path, onnxruntime: str) -> None:
    python = Session.open(any_toy).logits(IDS)
    opened, *told, tokens = drive(
        any_toy,
        ["logits", [IDS]],
        ["logits", [IDS, {"chunk": 3}]],
        ["prefill", [IDS[:4], {"chunk": 3}]],
        *(["decode", [token]] for token in IDS[4:]),
        ["tokens"],
        onnxruntime=onnxruntime,
    )
    assert values(opened) is None and values(tokens) == IDS
    at_once, in_chunks, *steps = map(logits, told)
    assert error(at_once, python) < 1e-4 and error(in_chunks, python) < 1e-4
    assert error(np.concatenate(steps), python[3:]) < 1e-4


@needs_node
def test_states_grow_as_long_as_the_context_allows(tmp_path: Path) -> None:
    toy_packages.write_toy(tmp_path / "toy", max_context=200)
    ids = [n % 300 for n in range(200)]
    wanted = Session.open(tmp_path / "toy").logits(ids)
    _, first, *steps, full, held = drive(
        tmp_path / "toy",
        ["prefill", [ids[:60]]],
        *(["decode", [token]] for token in ids[60:]),
        ["decode", [1]],
        ["tokens"],
    )
    assert error(np.concatenate([*map(logits, [first, *steps])]), wanted[59:]) < 1e-4
    assert "201 tokens, but the context holds 200" in full["message"]
    assert values(held) == ids


@needs_node
def test_it_makes_the_tokens_that_python_makes(toy: Path) -> None:
    session = Session.open(toy)
    wanted = session.generate(IDS, max_new_tokens=9)
    on = session.generate([7], max_new_tokens=3, fresh=False)
    _, made, held, goes_on, stopped, told_to, none = drive(
        toy,
        ["generate", [IDS, {"maxNewTokens": 9}]],
        ["tokens"],
        ["generate", [[7], {"maxNewTokens": 3, "fresh": False}]],
        ["generate", [IDS, {"maxNewTokens": 9, "stopIds": [wanted[4]]}]],
        ["generate", [IDS, {"maxNewTokens": 9, "most": 2}]],
        ["generate", [IDS, {"maxNewTokens": 0}]],
    )
    assert values(made) == made["told"] == wanted
    assert values(held) == [*IDS, *wanted[:-1]]
    assert values(goes_on) == on
    assert values(stopped) == wanted[: wanted.index(wanted[4]) + 1]
    assert values(told_to) == wanted[:2]
    assert values(none) == []


@needs_node
def test_a_checkpoints_own_end_of_text_ends_it(tmp_path: Path) -> None:
    graph, weights = toy_packages.chain_graph([1, 2, 3, 0])
    toy_packages.write_package(
        tmp_path / "chain", graph, weights, states=artifacts.StateLayout(()), vocab=4, eos=(3,)
    )
    _, ended, cut = drive(
        tmp_path / "chain", ["generate", [[0]]], ["generate", [[0], {"maxNewTokens": 2}]]
    )
    assert (values(ended), values(cut)) == ([1, 2, 3], [1, 2])


@needs_node
def test_sampling_draws_from_what_pythons_filters_leave(toy: Path) -> None:
    scores = Session.open(toy).prefill([IDS])[0]
    one = {"maxNewTokens": 1, "temperature": 1.7}
    cases = [{"topK": 7}, {"topP": 0.9}, {"minP": 0.05}, {"topK": 40, "topP": 0.8, "minP": 0.01}]
    names = {"topK": "top_k", "topP": "top_p", "minP": "min_p"}
    for case in cases:
        filtering = Sampling(1.7, **{names[key]: value for key, value in case.items()})  # type: ignore[arg-type]
        left = set(np.flatnonzero(filtering.filter(scores, None) > -np.inf).tolist())
        calls = [["generate", [IDS, {**one, **case, "seed": seed}]] for seed in range(60)]
        _, *told = drive(toy, *calls, *calls)
        drawn = [values(each)[0] for each in told]
        assert set(drawn) <= left and drawn[:60] == drawn[60:]
        assert len(set(drawn)) > 1
    greedy = int(scores.argmax())
    _, cold, single = drive(
        toy,
        ["generate", [IDS, {"maxNewTokens": 1, "temperature": 0, "topP": 0.9}]],
        ["generate", [IDS, {"maxNewTokens": 1, "topK": 1}]],
    )
    assert values(cold) == values(single) == [greedy]


@needs_node
def test_a_mistake_is_told_and_forgets_nothing(toy: Path) -> None:
    calls: list[list[object]] = [
        ["prefill", [[]]],
        ["prefill", ["text"]],
        ["prefill", [[1, 300]]],
        ["decode", [-1]],
        ["decode", [1.5]],
        ["logits", [IDS, {"chunk": 0}]],
        ["generate", [IDS, {"maxNewTokens": -1}]],
        ["generate", [IDS, {"temperature": -1}]],
        ["generate", [IDS, {"topP": 2}]],
        ["generate", [[1] * 600]],
    ]
    _, _, *told, held = drive(toy, ["prefill", [IDS]], *calls, ["tokens"])
    assert [each.get("error") for each in told] == ["SessionError"] * len(calls)
    assert "token 300 at position 1 is outside the vocabulary" in told[2]["message"]
    assert values(held) == IDS
    for options, message in (
        ({"provider": "npu"}, "no variant for npu; the package has cpu, and this driver runs web"),
        ({"capacity": 0}, "capacity is 0; a whole number of at least 1 is required"),
        ({"onnxruntime": "semver"}, "must be the module onnxruntime-web or onnxruntime-node"),
    ):
        assert message in refusal(toy, **options)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and its address."""
    handler = partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs_node
@pytest.mark.parametrize("onnxruntime", ["onnxruntime-node", "onnxruntime-web"])
def test_a_package_opens_at_an_address(toy: Path, site: tuple[Path, str], onnxruntime: str) -> None:
    folder, address = site
    shutil.copytree(toy, folder / "toy")
    wanted = Session.open(toy).logits(IDS)
    for verify in (False, True):
        _, found = drive(
            f"{address}/toy", ["logits", [IDS]], onnxruntime=onnxruntime, verify=verify
        )
        assert error(logits(found), wanted) < 1e-4
    assert "cannot read manifest.json: the server answers 404" in refusal(f"{address}/none")  # type: ignore[arg-type]
    blob = next((folder / "toy/shared_assets").iterdir())
    blob.write_bytes(blob.read_bytes() + b"more")
    assert "bytes that are allowed" in refusal(f"{address}/toy")  # type: ignore[arg-type]


def _edit(package: Path, edit: Callable[[Any], object]) -> None:
    path = package / "manifest.json"
    document = json.loads(path.read_bytes())
    edit(document)
    path.write_text(json.dumps(document))


def _append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def _spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


GRAPH = "variants/cpu/model.onnx"


def _blob(package: Path) -> Path:
    return sorted((package / "shared_assets").iterdir())[0]


def _states(document: Any) -> Any:
    return document["variants"][0]["states"]["specs"]


def _steal(document: Any) -> None:
    document["files"]["../secret"] = {"sha256": ANOTHER, "size": 6}
    document["variants"][0]["weights"].append("../secret")


def _as_delta(document: Any) -> None:
    _states(document)[0]["update"] = "delta"


def _without_a_state(document: Any) -> None:
    del _states(document)[0]


def _enormous(document: Any) -> None:
    _states(document)[0]["shape"] = ["batch", 1 << 30, "capacity", 1 << 30]


def _later(document: Any) -> None:
    document["variants"][0]["onnxruntime_min"] = "99.0"


ATTACKS: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: _spoil(p / GRAPH), f"{GRAPH} is not what manifest.json says: its sha256 is"),
    (lambda p: _append(p / GRAPH, b"x"), f"{GRAPH} has"),
    (lambda p: (p / GRAPH).unlink(), f"{GRAPH} is missing"),
    (lambda p: _link(p / GRAPH), f"{GRAPH} must be a plain file in plain folders, and no link"),
    (lambda p: _link(p / "shared_assets"), "must be a plain file in plain folders, and no link"),
    (lambda p: _append(_blob(p), b"x"), "are required; copy or export the package again"),
    (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda p: (p / "manifest.json").write_bytes(b"\xff"), "manifest.json: not JSON"),
    (lambda p: os.truncate(p / "manifest.json", 1 << 26), "at most 33554432 are allowed"),
    (lambda p: _edit(p, _steal), 'weights[4] is "../secret", whose form is not allowed'),
    (lambda p: _edit(p, _as_delta), "is a append state updated as delta; this driver holds"),
    (lambda p: _edit(p, _without_a_state), "its inputs are not those of the manifest's states"),
    (lambda p: _edit(p, _enormous), "bytes; at most 8589934592 are allowed"),
    (lambda p: _edit(p, _later), "variant cpu needs 99.0 or newer"),
]


@needs_node
@pytest.mark.parametrize(("attack", "message"), ATTACKS, ids=[text for _, text in ATTACKS])
def test_a_package_that_is_wrong_is_refused(
    toy: Path, tmp_path: Path, attack: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(toy, tmp_path / "toy")
    attack(tmp_path / "toy")
    told = refusal(tmp_path / "toy")
    assert message in told


@needs_node
@pytest.mark.parametrize("onnxruntime", ["onnxruntime-node", "onnxruntime-web"])
def test_weights_are_hashed_where_that_is_asked_for(
    toy: Path, tmp_path: Path, onnxruntime: str
) -> None:
    shutil.copytree(toy, tmp_path / "toy")
    _spoil(_blob(tmp_path / "toy"))
    opened, _ = drive(tmp_path / "toy", ["logits", [IDS]], onnxruntime=onnxruntime)
    assert values(opened) is None
    told = refusal(tmp_path / "toy", onnxruntime=onnxruntime, verify=True)
    assert "is not what manifest.json says" in told


@needs_node
def test_it_refuses_the_manifests_that_python_refuses() -> None:
    golden = GOLDEN.read_text()
    edits = [
        edit
        for edit, message in [*WRONG_FIELDS, *WRONG_REFERENCES]
        if not message.startswith(UNTOLD)
    ] + [_rename_graph(path) for path in PATHS]
    texts = [golden]
    for edit in edits:
        document = json.loads(golden)
        edit(document)
        texts.append(json.dumps(document))
    right, *wrong = _node({"parse": texts})
    assert "error" not in right
    for number, answer in enumerate(wrong):
        assert answer.get("error") == "PackageError", texts[number + 1][:200]
        assert answer["message"].startswith("manifest.json: ")
        assert "\n" not in answer["message"] and len(answer["message"]) < 300


def test_its_schema_is_the_published_one() -> None:
    published = Path(next(iter(artifacts.__path__))) / "manifest.schema.json"
    assert (DRIVER / "manifest.schema.json").read_bytes() == published.read_bytes(), (
        "run: cp artifacts/manifest.schema.json runtime/javascript/"
    )


@pytest.fixture(scope="module")
def static_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A model whose states are appended to, and replaced."""
    from edgewright.export import export_checkpoint
    from edgewright.export.static import StaticShapes
    from tests import model_zoo as zoo
    from tests.export.static_cpu import offered, static_cpu

    folder = tmp_path_factory.mktemp("static")
    sizes = {"chunk": 8, "capacity": 24}
    with offered(
        static_cpu("full", StaticShapes(**sizes)),
        static_cpu("delta", StaticShapes(**sizes, update="delta")),
        static_cpu("half", StaticShapes(**sizes, dtype="float16", update="delta")),
    ) as providers:
        checkpoint = zoo.write_checkpoint("bamba", folder, "float16")
        return export_checkpoint(checkpoint, folder / "package", (*providers, "cpu-portable"))


@needs_node
@pytest.mark.parametrize("provider", ["cpu:full", "cpu:delta", "cpu:half", "cpu-portable"])
def test_static_graphs_and_portable_ones(static_package: Package, provider: str) -> None:
    root, ids = static_package.root, IDS * 2
    python = Session.open(root, provider)
    wanted, tokens = python.logits(ids), python.generate(ids[:11], max_new_tokens=20)
    for onnxruntime in ("onnxruntime-node", "onnxruntime-web"):
        _, at_once, first, *steps, made = drive(
            root,
            ["logits", [ids]],
            ["prefill", [ids[:11]]],
            *(["decode", [token]] for token in ids[11:]),
            ["generate", [ids[:11], {"maxNewTokens": 20}]],
            onnxruntime=onnxruntime,
            provider=provider,
        )
        shape = (-1, wanted.shape[1])
        found = np.array(values(at_once), np.float32).reshape(shape)
        rest = np.array([values(each) for each in (first, *steps)], np.float32)
        within = 0.05 if provider == "cpu:half" else 1e-4
        assert error(found, wanted) < within and error(rest, wanted[10:]) < within
        assert provider == "cpu:half" or values(made) == tokens


@needs_node
def test_a_static_capacity_is_fixed(static_package: Package) -> None:
    told = refusal(static_package.root, provider="cpu:full", capacity=25)
    assert "holds 24 tokens, fixed when it was exported; a capacity of 25 is too large" in told
