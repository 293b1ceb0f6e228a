"""Which updates of a `replace` state are proved safe; which orders of reads and writes are not."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.states import StateLayout, StateSpec
from edgewright.custom_ops import OPS
from edgewright.custom_ops.onnx_functions import function_for
from edgewright.export.graph import Graph
from edgewright.export.state_order import prove_state_order

SPEC = StateSpec("layers.0.trace", ("batch", 6), "float32", "replace")
GRAPH = """<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,6] past, float[batch,6] x, float[1,6] one, bool[batch,1] is_new, int64[2] shape)
    => (float[batch,6] present) {{{nodes}}}
"""
SAFE = {
    "kept where nothing is new": """
        sum = Add (past, x)
        present = Where (is_new, sum, past)""",
    "kept where the condition holds": """
        sum = Add (past, x)
        present = Where (is_new, past, sum)""",
    "read for the condition": """
        close = Less (past, x)
        present = Where (close, x, past)""",
    "one row for all": """
        present = Where (is_new, one, past)""",
    "read through a view": """
        view = Reshape (past, shape)
        sum = Add (view, x)
        present = Where (is_new, sum, past)""",
}
REFUSED = {
    "a new tensor": ("makes a new tensor", "present = Add (past, x)"),
    "a copy": ("makes a new tensor", "present = Identity (past)"),
    "the past is not among the choices": (
        "makes a new tensor",
        """
        sum = Add (past, x)
        present = Where (is_new, sum, x)""",
    ),
    "read beside the write": (
        "late_reader",
        """
        present = Where (is_new, x, past)
        [late_reader] other = Neg (past)""",
    ),
    "read through a view that was made in time": (
        "late_reader",
        """
        view = Reshape (past, shape)
        sum = Add (view, x)
        present = Where (is_new, sum, past)
        [late_reader] other = Neg (view)""",
    ),
    "read through a view of a view": (
        "late_reader",
        """
        view = Reshape (past, shape)
        [middle] deeper = Identity (view)
        sum = Add (deeper, x)
        present = Where (is_new, sum, past)
        [late_reader] other = Neg (deeper)""",
    ),
}


def _graph(nodes: str) -> Graph:
    model = ir.from_onnx_text(GRAPH.format(nodes=nodes))
    model.graph.inputs[0].name = SPEC.input_name
    model.graph.outputs[0].name = SPEC.output_name
    return Graph(model, StateLayout((SPEC,)))


@pytest.mark.parametrize("name", SAFE)
def test_a_state_may_be_replaced_where_it_lies(name: str) -> None:
    prove_state_order(_graph(SAFE[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_other_updates_are_refused(name: str) -> None:
    message, nodes = REFUSED[name]
    with pytest.raises(ExportError, match=message):
        prove_state_order(_graph(nodes))


def test_a_state_of_another_shape_is_refused() -> None:
    graph = _graph("present = Where (is_new, x, past)")
    graph.model.graph.inputs[0].shape = ir.Shape([1, 6])
    with pytest.raises(ExportError, match="makes a new tensor"):
        prove_state_order(graph)


@pytest.mark.parametrize("name", [name for name, spec in OPS.items() if spec.in_place])
def test_the_bodies_of_our_ops_are_proved(name: str) -> None:
    """Each by itself, in a model that has nothing else."""
    function = function_for(name)
    model = ir.from_onnx_text(GRAPH.format(nodes=SAFE["one row for all"]))
    model.functions[function.identifier()] = function
    prove_state_order(Graph(model, StateLayout(())))
