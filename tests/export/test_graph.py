"""The canonical graph: the contract's names and shapes, few nodes, and nothing of this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops import DOMAIN
from edgewright.export.exporter import canonical_graph
from edgewright.export.graph import Graph
from edgewright.export.state_order import prove_state_order
from edgewright.model.loading import open_model


@pytest.fixture(scope="module")
def traced(checkpoint: Path) -> Graph:
    return canonical_graph(open_model(checkpoint))


@pytest.fixture
def graph(traced: Graph) -> Graph:
    """A copy that a test may spoil."""
    return Graph(ir.serde.deserialize_model(_proto(traced)), traced.layout)


def _proto(graph: Graph):  # type: ignore[no-untyped-def]
    """Without the large weights, which have no values yet."""
    kept = dict(graph.model.graph.initializers)
    for value in kept.values():
        if isinstance(value.const_value, ir.LazyTensor):
            value.const_value = ir.ExternalTensor(
                "nowhere", 0, value.const_value.nbytes, value.dtype, shape=value.shape, name="w"
            )
    return ir.serde.serialize_model(graph.model)


def test_names_and_shapes_are_the_contract(traced: Graph) -> None:
    inputs = {value.name: str(value.shape) for value in traced.model.graph.inputs}
    assert list(inputs)[:4] == ["input_ids", "start", "length", "logit_index"]
    assert list(inputs)[4:6] == ["past.layers.0.key", "past.layers.0.value"]
    assert inputs["input_ids"] == "[batch,seq]"
    assert inputs["logit_index"] == "[batch,wanted]"
    assert inputs["past.layers.0.key"] == "[batch,5,capacity,12]"
    outputs = {value.name: str(value.shape) for value in traced.model.graph.outputs}
    assert outputs["logits"] == "[batch,wanted,1003]"
    assert list(outputs)[1:3] == ["present.layers.0.key", "present.layers.0.value"]


def test_each_layer_is_a_handful_of_nodes(traced: Graph) -> None:
    counts = Counter(node.op_type for node in traced.model.graph)
    assert counts["CachedAttention"] == 3
    assert counts["BlockMatMul"] == 3 * 7 + 1
    assert counts["RMSNormalization"] == 3 * 2 + 1
    assert counts["RotaryEmbedding"] == 3 * 2
    assert not {"Constant", "Identity", "CastLike", "Transpose", "MatMul"} & set(counts)
    assert sum(counts.values()) < 120


def test_every_op_of_ours_has_its_body(traced: Graph) -> None:
    used = {node.op_type for node in traced.model.graph if node.domain == DOMAIN}
    assert used == {name for domain, name, _ in traced.model.functions if domain == DOMAIN}


def test_nothing_of_this_machine_is_written(traced: Graph) -> None:
    data = _proto(traced).SerializeToString()
    for trace in (b"stack_trace", b".py", str(Path(__file__).parents[2]).encode()):
        assert trace not in data


def test_the_order_of_reads_and_writes_is_proved(graph: Graph) -> None:
    prove_state_order(graph)


def test_a_read_that_may_come_after_the_write_is_refused(graph: Graph) -> None:
    past = graph.model.graph.inputs[4]
    reader = ir.node("Neg", [past], name="late_reader")
    graph.model.graph.append(reader)
    with pytest.raises(ExportError, match="late_reader"):
        prove_state_order(graph)


def test_a_read_inside_a_subgraph_is_seen(graph: Graph) -> None:
    past, length = graph.model.graph.inputs[4], graph.model.graph.inputs[2]
    inner = ir.node("Neg", [past])
    branch = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="branch")
    condition = ir.node("Cast", [length], {"to": ir.DataType.BOOL})
    hidden = ir.node(
        "If", [condition.outputs[0]], {"then_branch": branch, "else_branch": branch}, name="hidden"
    )
    graph.model.graph.extend([condition, hidden])
    with pytest.raises(ExportError, match="hidden"):
        prove_state_order(graph)


def test_a_read_that_the_writer_waits_for_is_allowed(graph: Graph) -> None:
    writer = graph.model.graph.outputs[1].producer()
    past = graph.model.graph.inputs[4]
    assert writer is not None
    reader = ir.node("ReduceSum", [past], {"keepdims": 0})
    cast = ir.node("Cast", [reader.outputs[0]], {"to": ir.DataType.INT64})
    shifted = ir.node("Add", [writer.inputs[6], cast.outputs[0]])
    graph.model.graph.insert_before(writer, [reader, cast, shifted])
    writer.replace_input_with(6, shifted.outputs[0])
    prove_state_order(graph)


def test_a_state_that_is_copied_is_refused(graph: Graph) -> None:
    present = graph.model.graph.outputs[1]
    copy = ir.node("Identity", [present], name="copier")
    graph.model.graph.append(copy)
    graph.model.graph.outputs[1] = copy.outputs[0]
    copy.outputs[0].name, present.name = present.name, "between"
    with pytest.raises(ExportError, match="copier"):
        prove_state_order(graph)
