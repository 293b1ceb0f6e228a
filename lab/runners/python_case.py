"""A case goes in, and a provider of this Python's ONNX Runtime; its answer comes out:

    python python_case.py ANSWER CASE PROVIDER [SOC_MODEL HTP_ARCH]

PROVIDER is cpu, webgpu or qnn. Nothing may fall back to another.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

_ERRORS_ONLY = 4
Nodes = dict[str, list[str]]
Measured = dict[str, float]


@dataclass
class Opened:
    """`nodes` where the session knows better than the profile of a run, which sees only that whole
    graphs were given away."""

    session: ort.InferenceSession
    nodes: Nodes | None = None
    measured: Measured = field(default_factory=dict)


def quiet_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    return options


def strict_options() -> ort.SessionOptions:
    options = quiet_options()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def profiled(options: ort.SessionOptions, answered: Path) -> ort.SessionOptions:
    options.enable_profiling = True
    options.profile_file_prefix = str(answered / "profile")
    return options


def open_cpu(model: Path, answered: Path) -> Opened:
    options = profiled(quiet_options(), answered)  # there is nothing that it could fall back to
    return Opened(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))


def open_webgpu(model: Path, answered: Path) -> Opened:
    name = "WebGpuExecutionProvider"
    # Without an adapter, Python would go on with the processor alone.
    session = ort.InferenceSession(
        model,
        profiled(strict_options(), answered),
        providers=[(name, {"dawnBackendType": "Vulkan"})],
        enable_fallback=0,
    )
    if name not in session.get_providers():
        raise RuntimeError(f"the session has {session.get_providers()} and not {name}")
    return Opened(session)


def open_qnn(model: Path, answered: Path, soc: str, architecture: str) -> Opened:
    """The model's own session tells where its nodes are; what runs is its context binary, read back
    from a file."""
    import onnxruntime_qnn

    name = "QNNExecutionProvider"
    ort.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]

    def options() -> ort.SessionOptions:
        strict = strict_options()
        strict.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        target = {"backend_type": "htp", "soc_model": soc, "htp_arch": architecture}
        strict.add_provider_for_devices(devices, target)
        return strict

    nodes = placed(ort.InferenceSession(model, options(), enable_fallback=0))
    compiled = answered / "compiled.onnx"
    compiler = ort.ModelCompiler(options(), str(model), embed_compiled_data_into_model=False)
    began = time.perf_counter()
    compiler.compile_to_file(str(compiled))
    measured = {
        "compile_seconds": time.perf_counter() - began,
        "binary_bytes": sum(path.stat().st_size for path in answered.glob("*_qnn.bin")),
    }
    session = ort.InferenceSession(compiled, options(), enable_fallback=0)
    if set(placed(session)) != {name}:
        raise RuntimeError(f"of the context binary, these are elsewhere: {placed(session)}")
    return Opened(session, nodes, measured)


OPEN: dict[str, Callable[..., Opened]] = {
    "cpu": open_cpu,
    "webgpu": open_webgpu,
    "qnn": open_qnn,
}


def placed(session: ort.InferenceSession) -> Nodes:
    nodes: Nodes = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return nodes


def ran(profile: Path) -> Nodes:
    """Every node that ran, once however often it ran."""
    found = {
        (event["name"], event["args"].get("node_index")): event["args"]
        for event in json.loads(profile.read_text())
        if event.get("cat") == "Node" and "provider" in event["args"]
    }
    nodes: Nodes = {}
    for node in found.values():
        nodes.setdefault(node["provider"], []).append(node["op_name"])
    return nodes


def read_inputs(case: Path, tensors: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.frombuffer((case / tensor["file"]).read_bytes(), tensor["dtype"]).reshape(
            tensor["shape"]
        )
        for name, tensor in tensors.items()
    }


def write_output(answered: Path, index: int, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    file = f"output{index}.bin"
    (answered / file).write_bytes(np.ascontiguousarray(array).tobytes())
    return {"dtype": array.dtype.name, "shape": list(array.shape), "file": file}


def answer(case: Path, answered: Path, provider: str, arguments: list[str]) -> dict[str, Any]:
    told = json.loads((case / "case.json").read_text())
    feed = read_inputs(case, told["inputs"])
    began = time.perf_counter()
    opened = OPEN[provider](case / told["model"], answered, *arguments)
    opened.measured["open_seconds"] = time.perf_counter() - began
    names = [output.name for output in opened.session.get_outputs()]
    began = time.perf_counter()
    found = opened.session.run(names, feed)
    opened.measured["run_seconds"] = time.perf_counter() - began
    nodes = opened.nodes
    if nodes is None:
        nodes = ran(Path(opened.session.end_profiling()))
    outputs = {
        name: write_output(answered, index, array)
        for index, (name, array) in enumerate(zip(names, found, strict=True))
    }
    return {"outputs": outputs, "nodes": nodes, "measured": opened.measured}


def main() -> None:
    answered, case, provider, *arguments = sys.argv[1:]
    ort.set_default_logger_severity(_ERRORS_ONLY)
    try:
        told = answer(Path(case), Path(answered), provider, arguments)
    except Exception as error:  # what the environment says is the answer
        told = {"error": f"{type(error).__name__}: {error}"}
    (Path(answered) / "answer.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
