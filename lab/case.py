"""A model, its inputs and what it must answer go in; a folder comes out that every runner can read,
in any language: `case.json` and raw little-endian values. A runner's answer has the same form.

    case.json    {"model": "model.onnx", "external": ["weights"], "inputs": {name: tensor}}
    answer.json  {"outputs": {name: tensor}, "nodes": {provider: [op]}, "measured": {name: number}}
                 or {"error": text}
    tensor       {"dtype": "float32", "shape": [2, 3], "file": "input0.bin"}

What a package answers has the same form, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lab import LabError

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]

# ONNX Runtime's words, when a node has no place but on the processor and may not go there.
_NO_FALLBACK = "fallback to CPU EP has been explicitly disabled"
_DTYPES = ("float32", "float16", "int64", "int32", "uint8", "int8", "uint16", "bool")


@dataclass(frozen=True)
class Answer:
    """`error` is what the environment said instead of an answer."""

    outputs: Arrays = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def is_refused(self) -> bool:
        return _NO_FALLBACK in self.error


@dataclass(frozen=True)
class PackageAnswer:
    """`logits` [n, vocabulary] and `tokens` [n], as package_run.mjs says; none with an error."""

    logits: Array | None = None
    tokens: tuple[int, ...] = ()
    nodes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of(cls, answer: Answer) -> PackageAnswer:
        if answer.error:
            return cls(error=answer.error)
        if answer.outputs.keys() != {"logits", "tokens"}:
            raise LabError(f"outputs {sorted(answer.outputs)} came; logits and tokens were wanted")
        tokens = tuple(answer.outputs["tokens"].tolist())
        return cls(answer.outputs["logits"], tokens, answer.nodes, answer.measured)


def write_case(
    folder: Path, model: bytes | Path, inputs: Arrays, external: tuple[str, ...] = ()
) -> None:
    """A path is that of a model beside its external data, which are linked here if they can be."""
    folder.mkdir(parents=True)
    if isinstance(model, bytes):
        (folder / "model.onnx").write_bytes(model)
    else:
        for name, source in {
            "model.onnx": model,
            **{n: model.parent / n for n in external},
        }.items():
            _link(source, folder / name)
    tensors = {
        name: _write_tensor(folder, f"input{index}.bin", array)
        for index, (name, array) in enumerate(inputs.items())
    }
    case = {"model": "model.onnx", "external": list(external), "inputs": tensors}
    (folder / "case.json").write_text(json.dumps(case))


def read_answer(folder: Path) -> Answer:
    path = folder / "answer.json"
    try:
        told = json.loads(path.read_text())
        if "error" in told:
            return Answer(error=str(told["error"]))
        outputs = {name: _read_tensor(folder, tensor) for name, tensor in told["outputs"].items()}
        nodes = {provider: tuple(ops) for provider, ops in told["nodes"].items()}
        return Answer(outputs, nodes, told.get("measured", {}))
    except FileNotFoundError:
        raise LabError(f"{path}: the runner left no answer") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise LabError(f"{path}: not an answer ({error!r})") from None


def difference(found: Arrays, wanted: Arrays) -> float:
    """The greatest, over the greater of one and the deviation of what is wanted."""
    if found.keys() != wanted.keys():
        raise LabError(f"outputs {sorted(found)} came; {sorted(wanted)} were wanted")
    return max((_difference(name, found[name], wanted[name]) for name in wanted), default=0.0)


def _difference(name: str, found: Array, wanted: Array) -> float:
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise LabError(
            f"{name}: {found.dtype} {found.shape} came; {wanted.dtype} {wanted.shape} was wanted"
        )
    if not wanted.size:
        return 0.0
    exact = wanted.astype(np.float64)
    apart = np.abs(found.astype(np.float64) - exact).max()
    return float("inf") if np.isnan(apart) else float(apart / max(1.0, exact.std()))


def _write_tensor(folder: Path, file: str, array: Array) -> dict[str, object]:
    if array.dtype.name not in _DTYPES:
        raise LabError(f"{array.dtype} is not a type of a case; {', '.join(_DTYPES)} are")
    (folder / file).write_bytes(np.ascontiguousarray(array).tobytes())
    return {"dtype": array.dtype.name, "shape": list(array.shape), "file": file}


def _read_tensor(folder: Path, tensor: Mapping[str, Any]) -> Array:
    if tensor["dtype"] not in _DTYPES or Path(tensor["file"]).name != tensor["file"]:
        raise ValueError(f"{tensor['dtype']} in {tensor['file']}")
    values = np.frombuffer((folder / tensor["file"]).read_bytes(), tensor["dtype"])
    return values.reshape(tensor["shape"])


def _link(source: Path, target: Path) -> None:
    # ONNX Runtime follows no symbolic link out of a model's folder.
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        target.write_bytes(source.read_bytes())
