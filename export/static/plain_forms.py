"""Operators that few providers have, written with those that most have: sums, products, quotients,
maxima, slices and joins. They see float32 and sizes that are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from edgewright.custom_ops.recorder import Recorder
from edgewright.export.static.half_forms import replace_node
from edgewright.export.static.weights import FLOATS

_PLAIN_OPSET = 20


def write_plainly(model: ir.Model) -> None:
    """Ensures: none of the operators of `_FORMS`, but where a form is not known."""
    for node in list(model.graph):
        form = _FORMS.get(node.op_type)
        if form is None:
            continue
        op = Recorder(prefix=f"{node.name}_plain_")
        new = form(op, node)
        if new is not None:
            replace_node(model.graph, node, op, new)


def read_every_input(model: ir.Model) -> None:
    """For a provider that counts the inputs it is given, and by mistake those alone that are read:
    what is not is added, times zero, to one of its type and sizes. Ensures: all are read, where
    there is such a one."""
    graph = model.graph
    for unread in [value for value in graph.inputs if not value.uses()]:
        like = (unread.dtype, _sizes(unread))
        read = next((v for v in graph.inputs if v.uses() and (v.dtype, _sizes(v)) == like), None)
        if read is None:
            continue
        op = Recorder(prefix=f"{unread.name}_read_")
        nothing = 0.0 if unread.dtype in FLOATS else 0
        both = op("Add", read, op("Mul", unread, nothing))
        both.type, both.shape = read.type, read.shape
        for user, place in list(read.uses()):
            if user is not both.producer():
                user.replace_input_with(place, both)
        graph.insert_before(graph[0], op.nodes)


def declare_plain_opset(model: ir.Model) -> None:
    """For a provider that takes no operator of a later opset, though what they say of it is the
    same: where `write_plainly` has been, none is left that opset 20 does not have."""
    model.opset_imports[""] = _PLAIN_OPSET


def _absolute(op: Recorder, node: ir.Node) -> ir.Value:
    return op("Max", _value(node), op("Mul", _value(node), -1.0))


def _negated(op: Recorder, node: ir.Node) -> ir.Value:
    return op("Mul", _value(node), -1.0)


def _reciprocal(op: Recorder, node: ir.Node) -> ir.Value:
    return op("Div", 1.0, _value(node))


def _least(op: Recorder, node: ir.Node) -> ir.Value | None:
    if node.outputs[0].dtype not in FLOATS:
        return None
    found, *others = (op("Mul", value, -1.0) for value in node.inputs if value is not None)
    for other in others:
        found = op("Max", found, other)
    return op("Mul", found, -1.0)


def _expanded(op: Recorder, node: ir.Node) -> ir.Value:
    wanted = _sizes(node.outputs[0])
    sizes = _sizes(_value(node))
    whole = (1,) * (len(wanted) - len(sizes)) + sizes
    value = _value(node) if whole == sizes else op("Reshape", _value(node), whole)
    repeats = tuple(size // held for size, held in zip(wanted, whole, strict=True))
    return op("Tile", value, repeats)


def _rms_norm(op: Recorder, node: ir.Node) -> ir.Value | None:
    """x / (m sqrt(mean((x / m)²) + epsilon / m²)), m the largest magnitude: no square is beyond
    float16, and none that counts beside epsilon is below it."""
    x, scale = _value(node), node.inputs[1]
    if _integer(node, "axis", -1) not in (-1, len(_sizes(x)) - 1) or scale is None:
        return None
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
    root = math.sqrt(epsilon)
    magnitude = op("Max", x, op("Mul", x, -1.0))
    largest = op("Max", op("ReduceMax", magnitude, (-1,), keepdims=1), 8 * root)
    part, small = op("Div", x, largest), op("Div", root, largest)
    mean = op("ReduceMean", op("Mul", part, part), (-1,), keepdims=1)
    size = op("Mul", largest, op("Sqrt", op("Add", mean, op("Mul", small, small))))
    return op("Mul", op("Div", x, size), scale)


def _rotated(op: Recorder, node: ir.Node) -> ir.Value | None:
    x, cos, sin, *places = node.inputs
    if x is None or cos is None or sin is None or any(places):
        return None
    sizes = _sizes(x)
    batch, seq, half = _sizes(cos)
    heads_first = len(sizes) == 4  # [batch, heads, seq, width], or else [batch, seq, all widths]
    if not heads_first:
        heads = _integer(node, "num_heads", 1)
        x = op("Reshape", x, (batch, seq, heads, sizes[-1] // heads))
    table = (batch, 1, seq, half) if heads_first else (batch, seq, 1, half)
    cos, sin = op("Reshape", cos, table), op("Reshape", sin, table)
    interleaved = _integer(node, "interleaved", 0) == 1
    first, second = _pairs(op, x, half, interleaved)
    turned = (
        op("Sub", op("Mul", first, cos), op("Mul", second, sin)),
        op("Add", op("Mul", first, sin), op("Mul", second, cos)),
    )
    kept = sizes[:3] if heads_first else (batch, seq, heads)
    found = _joined(op, turned, (*kept, half), interleaved)
    width = sizes[-1] if heads_first else sizes[-1] // heads
    if width > 2 * half:
        found = op("Concat", found, op("Slice", x, (2 * half,), (width,), (3,)), axis=3)
    return found if heads_first else op("Reshape", found, sizes)


def _pairs(op: Recorder, x: ir.Value, half: int, interleaved: bool) -> tuple[ir.Value, ir.Value]:
    if interleaved:
        first = op("Slice", x, (0,), (2 * half,), (3,), (2,))
        return first, op("Slice", x, (1,), (2 * half,), (3,), (2,))
    return op("Slice", x, (0,), (half,), (3,)), op("Slice", x, (half,), (2 * half,), (3,))


def _joined(
    op: Recorder, parts: tuple[ir.Value, ir.Value], sizes: tuple[int, ...], interleaved: bool
) -> ir.Value:
    if not interleaved:
        return op("Concat", *parts, axis=3)
    columns = [op("Reshape", part, (*sizes, 1)) for part in parts]
    return op("Reshape", op("Concat", *columns, axis=4), (*sizes[:3], 2 * sizes[3]))


def _value(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


_FORMS: dict[str, Callable[[Recorder, ir.Node], ir.Value | None]] = {
    "Abs": _absolute,
    "Expand": _expanded,
    "Min": _least,
    "Neg": _negated,
    "RMSNormalization": _rms_norm,
    "Reciprocal": _reciprocal,
    "RotaryEmbedding": _rotated,
}
