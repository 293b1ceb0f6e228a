"""A package goes in, and one of its providers; what our runtime answers in this Python comes out:

    python python_package.py ANSWER PACKAGE PROVIDER IDS PROMPT

The words and the answer are those of node_package.mjs. Nothing may fall back to another provider.
"""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from python_case import placed, ran, write_output

OPENED: list[ort.InferenceSession] = []
ROOMS = Path(__file__).parents[2]


class Recorded(ort.InferenceSession):  # type: ignore[misc]
    """ONNX Runtime's own, which can be asked afterwards where its nodes are."""

    def __init__(self, model: bytes, options: ort.SessionOptions, **rest: Any) -> None:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(sys.argv[1]) / f"profile{len(OPENED)}")
        super().__init__(model, options, **rest)
        OPENED.append(self)


def import_rooms() -> None:
    """The rooms at the root of the repository, as an installation would have them."""
    namespace = types.ModuleType("edgewright")
    namespace.__path__ = [str(ROOMS)]
    sys.modules[namespace.__name__] = namespace


def answer(answered: Path, package: str, provider: str, ids: list[int], prompt: int) -> Any:
    import_rooms()
    from edgewright.runtime import Session

    ort.InferenceSession = Recorded
    began = time.perf_counter()
    session = Session.open(package, provider, threads=1)
    opened = time.perf_counter()
    rows = [session.prefill(ids[:prompt])[0], *(session.decode(token)[0] for token in ids[prompt:])]
    tokens = session.generate(ids[:prompt], max_new_tokens=len(rows), stop_ids=())
    done = time.perf_counter()
    nodes: dict[str, list[str]] = {}
    for each in OPENED:
        # Where a release does not say what it placed, what ran tells.
        profile = Path(each.end_profiling())
        for name, ops in (placed(each) or ran(profile)).items():
            nodes.setdefault(name, []).extend(ops)
    outputs = {"logits": np.stack(rows), "tokens": np.array(tokens, np.int32)}
    return {
        "outputs": {
            name: write_output(answered, index, array)
            for index, (name, array) in enumerate(outputs.items())
        },
        "nodes": nodes,
        "measured": {
            "open_seconds": opened - began,
            "run_seconds": done - opened,
            "native_kernels": float(session.kernels == "native"),
        },
    }


def main() -> None:
    answered, package, provider, ids, prompt = sys.argv[1:]
    numbers = [int(token) for token in ids.split(",")]
    try:
        told = answer(Path(answered), package, provider, numbers, int(prompt))
    except Exception as error:  # what the environment says is the answer
        told = {"error": f"{type(error).__name__}: {error}"}
    (Path(answered) / "answer.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
