"""Runs in the arm64 root: models and inputs come in on stdin, outputs go out on stdout.

A message is its length in eight bytes and an .npz without pickles; `request` in it is JSON.
"""

from __future__ import annotations

import ctypes
import io
import json
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import onnxruntime as ort

Arrays = dict[str, np.ndarray[Any, Any]]
_FOLDER = "session.model_external_initializers_file_folder_path"


def receive(stream: BinaryIO) -> Arrays | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    with np.load(io.BytesIO(stream.read(int.from_bytes(head, "little")))) as stored:
        return dict(stored)


def send(stream: BinaryIO, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def text(value: object) -> np.ndarray[Any, Any]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def open_session(request: dict[str, Any], model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("edgewright.isa", request["isa"])
    if request["folder"]:
        options.add_session_config_entry(_FOLDER, request["folder"])
    options.register_custom_ops_library(request["library"])
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, feed: Arrays, pairs: Sequence[Sequence[str]]) -> list[Any]:
    """Each (input, output) of `pairs` is the same memory, before and after. The sweeps call it on
    their own machine too."""
    if not pairs:
        return list(session.run(None, feed))
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    source = {output: name for name, output in pairs}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        if name in source:
            binding.bind_ortvalue_output(name, values[source[name]])
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding)
    outputs = binding.get_outputs()
    for name, output in zip(names, outputs, strict=True):
        if name in source and output.data_ptr() != values[source[name]].data_ptr():
            raise ValueError(f"{name} did not stay in place")
    return [output.numpy() for output in outputs]


def call_native(library: str, name: str, arguments: Sequence[Any]) -> None:
    """A function of a library; arrays are passed where they lie, and numbers as size_t."""
    passed = [
        ctypes.c_void_p(each.ctypes.data) if isinstance(each, np.ndarray) else ctypes.c_size_t(each)
        for each in arguments
    ]
    getattr(ctypes.CDLL(library), name)(*passed)


def answer(sessions: dict[int, ort.InferenceSession], message: Arrays) -> Arrays:
    request = json.loads(message.pop("request").tobytes())
    if request["do"] == "call":
        given = [message[each] if isinstance(each, str) else each for each in request["arguments"]]
        call_native(request["library"], request["name"], given)
        return message
    number = request["session"]
    if request["do"] == "close":
        del sessions[number]
        return {}
    if request["do"] == "open":
        sessions[number] = open_session(request, message["model"].tobytes())
        return {}
    outputs = run(sessions[number], message, request["pairs"])
    return {str(index): output for index, output in enumerate(outputs)}


def main() -> None:
    sessions: dict[int, ort.InferenceSession] = {}
    while (message := receive(sys.stdin.buffer)) is not None:
        try:
            send(sys.stdout.buffer, answer(sessions, message))
        except Exception as error:  # the other side raises it
            send(sys.stdout.buffer, {"error": text(str(error))})


if __name__ == "__main__":
    main()
