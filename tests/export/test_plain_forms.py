"""Plain forms of operators, and integers as floats, against ONNX's own operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes import common as standard

from edgewright.export.static.float_counts import count_in_floats
from edgewright.export.static.plain_forms import read_every_input, write_plainly

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((1, 5, 24)).astype(np.float32)
WAVES = RANDOM.standard_normal((1, 5, 3)).astype(np.float32)
HEADS = X.reshape(1, 5, 4, 6).transpose(0, 2, 1, 3).copy()
PLACES = np.array([[4], [0]], np.int64)


def _model(
    op: str,
    inputs: dict[str, np.ndarray],
    kept: dict[str, np.ndarray],
    order: tuple[str, ...] = (),
    **attributes: object,
) -> onnx.ModelProto:
    given = [onnx.helper.make_tensor_value_info(k, _kind(v), v.shape) for k, v in inputs.items()]
    node = onnx.helper.make_node(op, order or [*inputs, *kept], ["y"], name="it", **attributes)
    held = [onnx.numpy_helper.from_array(value, name) for name, value in kept.items()]
    out = onnx.helper.make_empty_tensor_value_info("y")
    graph = onnx.helper.make_graph([node], "g", given, [out], held)
    opset = [onnx.helper.make_opsetid("", 23)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _kind(values: np.ndarray) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(values.dtype)


def _run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
    feeds = {i.name: inputs[i.name].astype(types[i.type]) for i in session.get_inputs()}
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def _rewritten(
    model: onnx.ModelProto, rewrite: Callable[[ir.Model], None]
) -> tuple[onnx.ModelProto, set[str]]:
    made = ir.serde.deserialize_model(model)
    rewrite(made)
    standard.RemoveUnusedNodesPass()(made)
    again = ir.serde.serialize_model(made)
    return again, {node.op_type for node in again.graph.node} - {"Constant", "Identity"}


PLAIN = [
    ("Abs", {"x": X}, {}, {}),
    ("Neg", {"x": X}, {}, {}),
    ("Reciprocal", {"x": X}, {}, {}),
    ("Min", {"x": X, "z": X[:, ::-1].copy()}, {}, {}),
    ("Expand", {"x": X}, {"size": np.array([2, 1, 5, 24])}, {}),
    ("RMSNormalization", {"x": X}, {"w": X[0, 0]}, {"epsilon": 1e-6, "axis": -1}),
    ("RMSNormalization", {"x": 1e-5 * X}, {"w": X[0, 0]}, {"epsilon": 1e-6, "axis": -1}),
    ("RMSNormalization", {"x": 0 * X}, {"w": X[0, 0]}, {"epsilon": 1e-6, "axis": -1}),
    ("RotaryEmbedding", {"x": X, "c": WAVES, "s": WAVES[:, ::-1].copy()}, {}, {"num_heads": 4}),
    ("RotaryEmbedding", {"x": HEADS, "c": WAVES, "s": WAVES[:, ::-1].copy()}, {}, {}),
    (
        "RotaryEmbedding",
        {"x": HEADS, "c": WAVES[..., :2].copy(), "s": WAVES[..., 1:].copy()},
        {},
        {"interleaved": 1, "rotary_embedding_dim": 4},
    ),
]


@pytest.mark.parametrize(("op", "inputs", "kept", "attributes"), PLAIN)
def test_a_plain_form_gives_the_same(
    op: str,
    inputs: dict[str, np.ndarray],
    kept: dict[str, np.ndarray],
    attributes: dict[str, object],
) -> None:
    model = _model(op, inputs, kept, **attributes)
    again, ops = _rewritten(model, write_plainly)
    assert op not in ops
    np.testing.assert_allclose(_run(again, inputs), _run(model, inputs), rtol=2e-6, atol=1e-6)


def test_a_norm_of_large_values_stays_within_float16() -> None:
    large = np.full((1, 1, 4096), 60000, np.float32)
    model = _model("RMSNormalization", {"x": large}, {"w": np.ones(4096, np.float32)}, axis=-1)
    again, _ = _rewritten(model, write_plainly)
    made = {name for node in again.graph.node for name in node.output} - {"y"}
    again.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, sorted(made)))
    session = ort.InferenceSession(again.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": large})
    assert max(np.abs(values).max() for values in found) <= np.finfo(np.float16).max
    np.testing.assert_allclose(found[0], 1.0, rtol=1e-6)


COUNTS = np.array([[-3, 0, 2, 2, 9]], np.int64)
OTHERS = np.array([[2]], np.int64)
FLAGS = COUNTS > 0
FLOATED = [
    *((op, {"a": COUNTS, "b": OTHERS}, {}, {}) for op in ("Less", "Greater", "Equal")),
    *((op, {"a": COUNTS}, {"b": OTHERS}, {}) for op in ("LessOrEqual", "GreaterOrEqual")),
    *((op, {"a": FLAGS, "b": COUNTS == 2}, {}, {}) for op in ("And", "Or")),
    ("Not", {"a": FLAGS}, {}, {}),
    ("Add", {"a": COUNTS}, {"b": OTHERS}, {}),
    ("Where", {"a": FLAGS, "b": COUNTS, "c": OTHERS}, {}, {}),
    ("Cast", {"a": COUNTS}, {}, {"to": onnx.TensorProto.BOOL}),
    ("Cast", {"a": COUNTS}, {}, {"to": onnx.TensorProto.FLOAT}),
    ("GatherElements", {"x": X[..., :1].copy(), "a": PLACES[None]}, {}, {"axis": 1}),
]


@pytest.mark.parametrize(("op", "inputs", "kept", "attributes"), FLOATED)
def test_counting_in_floats_gives_the_same(
    op: str,
    inputs: dict[str, np.ndarray],
    kept: dict[str, np.ndarray],
    attributes: dict[str, object],
) -> None:
    model = _model(op, inputs, kept, **attributes)
    again, ops = _rewritten(model, count_in_floats)
    again.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    assert (op in ops) == (op in ("Add", "Where"))
    found = _run(again, inputs)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, _run(model, inputs).astype(np.float32))


KEPT = [
    ("Mod", {"a": COUNTS, "b": OTHERS}),
    ("Less", {"x": X, "z": X[:, ::-1].copy()}),
]


@pytest.mark.parametrize(("op", "inputs"), KEPT)
def test_what_has_no_form_in_floats_stays(op: str, inputs: dict[str, np.ndarray]) -> None:
    model = _model(op, inputs, {})
    again, ops = _rewritten(model, count_in_floats)
    assert op in ops
    np.testing.assert_array_equal(_run(again, inputs), _run(model, inputs))


def test_rows_of_a_table_are_a_product() -> None:
    table = X[0]
    model = _model("Gather", {"a": PLACES}, {"t": table}, order=("t", "a"))
    again, ops = _rewritten(model, count_in_floats)
    assert "Gather" not in ops
    np.testing.assert_array_equal(_run(again, {"a": PLACES}), table[PLACES])


def test_an_input_that_nothing_reads_is_read() -> None:
    model = _model("Abs", {"x": X}, {})
    unread = onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, X.shape)
    model.graph.input.append(unread)
    again, _ = _rewritten(model, read_every_input)
    assert {name for each in again.graph.node for name in each.input} >= {"x", "u"}
    np.testing.assert_array_equal(_run(again, {"x": X, "u": X}), np.abs(X))
