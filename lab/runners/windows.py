"""A case or a package goes in; what ONNX Runtime for Windows answers under Wine comes out:

    python windows.py case ANSWER CASE PREFIX DRIVER ONNXRUNTIME
    python windows.py package ANSWER PACKAGE PROVIDER IDS PROMPT PREFIX DRIVER ONNXRUNTIME

The words of a package and the answer are those of node_package.mjs. DRIVER is what ort_case.cc
becomes; it takes the steps that are written here. A package's op library runs with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from python_case import ran, read_inputs, write_output

from edgewright.artifacts.package import Package
from edgewright.artifacts.states import StateLayout

_TARGET = "windows-x86_64"
_DOMAIN = "ai.edgewright"
_WEIGHTS_BELOW = "session.model_external_initializers_file_folder_path"
_WINE = Path(__file__).parent / "wine.py"
# ONNX's numbers of them.
_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
}
_NAMES = {number: name for name, number in _TYPES.items()}

Array = np.ndarray[Any, Any]


class Steps:
    """What the driver is to do, written down in a folder with the values that it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def add(self, *words: str) -> None:
        self.lines.append("\t".join(words))

    def tensor(self, name: str, array: Array) -> None:
        file = self.folder / f"value{len(self.lines)}.bin"
        file.write_bytes(np.ascontiguousarray(array).tobytes())
        sizes = map(str, array.shape)
        self.add("tensor", name, str(_TYPES[array.dtype.name]), on_windows(file), *sizes)

    def open(self, model: Path, root: Path, library: Path | None = None) -> None:
        self.add("option", _WEIGHTS_BELOW, on_windows(root))
        if library is not None:
            self.add("library", on_windows(library))
        self.add("profile", on_windows(self.folder / "profile"))
        self.add("open", on_windows(model))

    def write(self, output: str, file: str) -> None:
        self.add("write", output, on_windows(self.folder / file))

    def take(self, wine: Sequence[str]) -> list[list[str]]:
        """The lines that the driver says, in words."""
        path = self.folder / "steps.txt"
        path.write_bytes("\n".join(self.lines).encode())
        command = [sys.executable, str(_WINE), *wine, on_windows(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            said = (done.stderr.strip() or "nothing").splitlines()[-1]
            raise RuntimeError(f"exit status {done.returncode} under Wine: {said}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def nodes(self) -> dict[str, list[str]]:
        return ran(next(self.folder.glob("profile*.json")))


class Conversation:
    """Tokens of one row, whose states go from one run to the next."""

    def __init__(self, steps: Steps, states: StateLayout, capacity: int) -> None:
        self.steps = steps
        self.states = states
        self.capacity = capacity

    def read(self, prompt: Sequence[int], rows: str) -> None:
        """From the beginning."""
        self.start = 0
        for spec in self.states:
            shape = spec.resolve(1, self.capacity)
            self.steps.tensor(spec.input_name, np.zeros(shape, spec.dtype))
        self.go_on(prompt, rows)

    def go_on(self, ids: Sequence[int], rows: str) -> None:
        self.steps.tensor("input_ids", np.array([ids]))
        self._run(len(ids), rows)

    def choose(self, rows: str) -> None:
        """Go on with the likeliest token."""
        self.steps.add("choose", "logits", "input_ids")
        self._run(1, rows)

    def _run(self, count: int, rows: str) -> None:
        self.steps.tensor("start", np.array([self.start]))
        self.steps.tensor("length", np.array([count]))
        self.steps.tensor("logit_index", np.array([[count - 1]]))
        self.steps.add("run", "logits", *(spec.output_name for spec in self.states))
        for spec in self.states:
            self.steps.add("pass", spec.output_name, spec.input_name)
        self.steps.write("logits", rows)
        self.start += count


def answer_case(answered: Path, case: Path, wine: Sequence[str]) -> dict[str, Any]:
    told = json.loads((case / "case.json").read_text())
    model = case / told["model"]
    steps = Steps(answered)
    steps.open(model, case)
    for name, array in read_inputs(case, told["inputs"]).items():
        steps.tensor(name, array)
    outputs = onnx.load(model, load_external_data=False).graph.output
    steps.add("run", *(output.name for output in outputs))
    for index, output in enumerate(outputs):
        steps.write(output.name, f"output{index}.bin")
    opened, *lines = steps.take(wine)
    found = {
        name: {
            "dtype": _NAMES[int(kind)],
            "shape": [int(size) for size in shape],
            "file": f"output{index}.bin",
        }
        for index, (name, kind, *shape) in enumerate(lines)
    }
    measured = {"open_seconds": float(opened[1])}
    return {"outputs": found, "nodes": steps.nodes(), "measured": measured}


def answer_package(
    answered: Path, root: Path, wine: Sequence[str], provider: str, ids: Sequence[int], prompt: int
) -> dict[str, Any]:
    package = Package.open(root)
    variant = next(each for each in package.manifest.variants if each.provider == provider)
    graph = package.verified_path(variant.graphs["step"])
    steps = Steps(answered)
    steps.open(graph, package.root, package.verified_path(variant.libraries[_TARGET]))
    count = len(ids) - prompt + 1
    conversation = Conversation(steps, variant.states, capacity=len(ids) + 1)
    conversation.read(ids[:prompt], "forced.bin")
    for token in ids[prompt:]:
        conversation.go_on([token], "forced.bin")
    conversation.read(ids[:prompt], "chosen.bin")
    for _ in range(count - 1):
        conversation.choose("chosen.bin")
    opened, *_ = steps.take(wine)
    logits, chosen = (
        np.fromfile(answered / name, np.float32).reshape(count, -1)
        for name in ("forced.bin", "chosen.bin")
    )
    outputs = {"logits": logits, "tokens": chosen.argmax(-1).astype(np.int32)}
    nodes = steps.nodes()
    return {
        "outputs": {
            name: write_output(answered, index, array)
            for index, (name, array) in enumerate(outputs.items())
        },
        "nodes": nodes,
        "measured": {
            "open_seconds": float(opened[1]),
            "native_kernels": float(all_by_kernels(graph, nodes)),
        },
    }


def all_by_kernels(graph: Path, nodes: Mapping[str, Iterable[str]]) -> bool:
    """A body that ran instead of one of our ops has other ops' names."""
    model = onnx.load(graph, load_external_data=False)
    ours = {node.op_type for node in model.graph.node if node.domain == _DOMAIN}
    return bool(ours) and ours.issubset({op for ops in nodes.values() for op in ops})


def on_windows(path: Path) -> str:
    """Wine has this machine's files as drive Z."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def main() -> None:
    kind, answered, folder, *words, prefix, driver, library = sys.argv[1:]
    wine = [prefix, driver, on_windows(Path(library))]
    try:
        if kind == "case":
            told = answer_case(Path(answered), Path(folder), wine)
        else:
            provider, ids, prompt = words
            numbers = [int(token) for token in ids.split(",")]
            told = answer_package(
                Path(answered), Path(folder), wine, provider, numbers, int(prompt)
            )
    except Exception as error:  # what the environment says is the answer
        told = {"error": f"{type(error).__name__}: {error}"}
    (Path(answered) / "answer.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
