"""Every kind of node that computes in integers, alone on the HTP: a few steps of its output's scale
from what the processor computes of the same graph."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from edgewright.artifacts import PackageWriter
from edgewright.export.providers.qnn import INTEGER_OPS
from edgewright.export.static.marks import mark
from edgewright.export.static.quantise import quantise
from edgewright.export.static.shapes import Quantisation
from edgewright.export.static.weights import WeightConverter

QNN_PYTHON = os.environ.get("EDGEWRIGHT_QNN_PYTHON")
# Of 65535 between the least and the greatest value: half of what float16 rounds 1 to. Softmax needs
# them; all others keep to eight.
STEPS = 32
FORMS = {
    "Add": "y = Add(a, b)",
    "Sub": "y = Sub(a, b)",
    "Mul": "y = Mul(a, b)",
    "Sigmoid": "y = Sigmoid(a)",
    "Softmax": "y = Softmax<axis = -1>(a)",
    "RMSNormalization": "y = RMSNormalization<axis = -1, epsilon = 1e-5>(a, gain)",
    "Gemm": "y = Gemm<transB = 1>(a, weight)",
    "MatMul": "t = Transpose<perm = [1, 0]>(b) y = MatMul(a, t)",
    "Concat": "y = Concat<axis = 0>(a, b)",
    "Where": "zero = Constant<value_float = 0.0>() c = Less(a, zero) y = Where(c, a, b)",
}
_RUN = """
import sys, numpy as np, onnxruntime as ort
from edgewright.runtime.execution_providers import EXECUTION_PROVIDERS
folder, *names = sys.argv[1:]
feeds = dict(np.load(folder + "/feeds.npz"))
for name in names:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    EXECUTION_PROVIDERS["qnn"].add_to(ort, options, "qnn:sm8650")
    session = ort.InferenceSession(f"{folder}/{name}.onnx", options, enable_fallback=0)
    taken = {i.name: feeds[i.name] for i in session.get_inputs()}
    np.save(f"{folder}/{name}.npy", session.run(None, taken)[0])
"""


def _graph(form: str) -> onnx.ModelProto:
    names = [name for name in "ab" if re.search(rf"\b{name}\b", form)]
    takes = ", ".join(f"float[8,64] {name}" for name in names)
    random = np.random.default_rng(1)
    held = {"gain": random.normal(1, 0.3, 64), "weight": random.normal(0, 0.1, (48, 64))}
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> g ({takes}) => (float[N,M] y) {{ {form} }}'
    )
    for name, values in held.items():
        if name in form:
            model.graph.initializer.append(
                onnx.numpy_helper.from_array(values.astype(np.float32), name)
            )
    return onnx.shape_inference.infer_shapes(model)


def _quantised(form: str, feeds: dict[str, np.ndarray], folder: Path) -> onnx.ModelProto:
    floats = _graph(form)
    model = ir.serde.deserialize_model(floats)
    mark(model.graph, INTEGER_OPS)
    session = onnxruntime.InferenceSession(floats.SerializeToString())
    taken = {argument.name: feeds[argument.name] for argument in session.get_inputs()}
    (found,) = session.run(None, taken)
    values = {**taken, "y": found, "t": feeds["b"]}
    ranges = {name: (float(v.min()), float(v.max())) for name, v in values.items()}
    with PackageWriter(folder / "unused") as writer:
        weights = WeightConverter((), writer)
        quantise(model.graph, ranges, weights, Quantisation(8, INTEGER_OPS))
    return ir.serde.serialize_model(model)


@pytest.mark.skipif(QNN_PYTHON is None, reason="EDGEWRIGHT_QNN_PYTHON names no Python")
def test_nodes_in_integers_are_the_processors(tmp_path: Path) -> None:
    assert QNN_PYTHON is not None
    random = np.random.default_rng(0)
    feeds = {name: random.normal(0, 1.5, (8, 64)).astype(np.float32) for name in "ab"}
    # What goes in is float16 on the HTP whatever it is here.
    feeds = {name: values.astype(np.float16).astype(np.float32) for name, values in feeds.items()}
    np.savez(tmp_path / "feeds.npz", **feeds)
    for name, form in FORMS.items():
        onnx.save(_quantised(form, feeds, tmp_path), tmp_path / f"{name}.onnx")
    subprocess.run([QNN_PYTHON, "-c", _RUN, str(tmp_path), *FORMS], check=True)
    errors = {}
    for name in FORMS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", options)
        taken = {argument.name: feeds[argument.name] for argument in session.get_inputs()}
        (wanted,) = session.run(None, taken)
        found = np.load(tmp_path / f"{name}.npy")
        span = max(0.0, float(wanted.max())) - min(0.0, float(wanted.min()))
        errors[name] = float(np.abs(found - wanted).max()) / span * 65535
    assert {name: steps for name, steps in errors.items() if steps > STEPS} == {}
