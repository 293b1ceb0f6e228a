"""A graph with marked nodes and the ranges of its values go in; the same graph, with the marked
nodes between QuantizeLinear and DequantizeLinear, comes out.

Values are unsigned 16-bit integers, one scale for each tensor. Matrices that are multiplied with
are symmetric integers of 8 or 4 bits, one scale for each row: with one for each block, Qualcomm's
HTP gives something else. The second operand of a product of two values is a signed 16-bit integer
without a zero point: the HTP takes an unsigned one for 8 bits, and rounds a signed one to two
bytes, of which the upper is cut off beyond 127.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgewright.export.static.activations import MASK, Range, measured
from edgewright.export.static.marks import MOVES, PRODUCTS, constant_of, is_marked
from edgewright.export.static.shapes import Quantisation
from edgewright.export.static.weights import FLOATS, WeightConverter

_LEVELS = 65535
_SYMMETRIC = 127 * 256
# exp of it is less than half a step of a probability.
_FAR_BELOW = 20.0
# Their results' ranges are known.
_SHARES = frozenset({"Sigmoid", "Softmax"})
_LEAST_RANGE = 1e-6


def quantise(
    graph: ir.Graph, ranges: Mapping[str, Range], weights: WeightConverter, how: Quantisation
) -> None:
    _Quantiser(graph, ranges, weights, how).run()


@dataclass(frozen=True)
class _Scale:
    """The initializers that say how integers stand for values."""

    scale: ir.Value
    zero: ir.Value
    step: float
    offset: int


class _Quantiser:
    def __init__(
        self,
        graph: ir.Graph,
        ranges: Mapping[str, Range],
        weights: WeightConverter,
        how: Quantisation,
    ) -> None:
        self._graph, self._weights, self._how = graph, weights, how
        self._nodes = [node for node in graph if is_marked(node)]
        self._groups = _Groups(self._nodes)
        self._ranges = self._joined(ranges)
        self._scales: dict[tuple[ir.Value, bool], _Scale] = {}
        self._dequantised: dict[ir.Value, ir.Value] = {}
        self._signed: dict[ir.Value, ir.Value] = {}
        self._matrices: dict[str, ir.Value] = {}

    def run(self) -> None:
        for value in measured(self._graph):
            self._pass_through(value)
        for node in self._nodes:
            for place, read in enumerate(node.inputs):
                if read is None or read.dtype != ir.DataType.FLOAT:
                    continue
                held, is_second = constant_of(read), node.op_type in PRODUCTS and place == 1
                if held is not None:
                    made = self._matrix(node, held) if is_second else self._constant(node, read)
                    node.replace_input_with(place, made)
                elif is_second:
                    node.replace_input_with(place, self._as_signed(read))

    def _joined(self, ranges: Mapping[str, Range]) -> dict[ir.Value, Range]:
        """Of each group, by its first value; every range has 0 in it, so that it is exact."""
        found: dict[ir.Value, Range] = {}
        masked = set()

        def widen(value: ir.Value, least: float, most: float) -> None:
            root = self._groups.root(value)
            before = found.get(root, (0.0, 0.0))
            found[root] = (min(before[0], least), max(before[1], most))

        for value in measured(self._graph):
            maker = value.producer()
            shares = maker is not None and is_marked(maker) and maker.op_type in _SHARES
            widen(value, *((0.0, 1.0) if shares else ranges[str(value.name)]))
        for node in self._nodes:
            for place, read in enumerate(node.inputs):
                held = None if read is None or read.dtype not in FLOATS else constant_of(read)
                if read is None or held is None or (node.op_type in PRODUCTS and place == 1):
                    continue
                values, beside = held.numpy().astype(np.float32), _stands_with(node, read)
                if values.size == 1 and float(values.min()) < MASK:
                    masked.add(self._groups.root(beside))
                else:
                    widen(beside, float(values.min()), float(values.max()))
        for root in masked:
            least, most = found.get(root, (0.0, 0.0))
            found[root] = (least - _FAR_BELOW, most)
        return found

    def _pass_through(self, value: ir.Value) -> None:
        """What is read of it from here on was an integer in between: by all, or, where no marked
        node made it, by marked nodes."""
        maker = value.producer()
        scale = self._scale(value)
        readers = [use for use in value.uses() if is_marked(maker) or is_marked(use.node)]
        made = self._through(value, scale)
        for use in readers:
            use.node.replace_input_with(use.idx, made)
        if is_marked(maker) and value.is_graph_output():
            outputs = self._graph.outputs
            outputs[list(outputs).index(value)] = made
            made.name, value.name = value.name, f"{value.name}.computed"
        self._dequantised[made] = value

    def _through(self, value: ir.Value, scale: _Scale, suffix: str = "") -> ir.Value:
        name, inputs = f"{value.name}{suffix}", [scale.scale, scale.zero]
        down = ir.Node("", "QuantizeLinear", [value, *inputs], name=f"{name}.quantise")
        up = ir.Node("", "DequantizeLinear", [down.outputs[0], *inputs], name=f"{name}.dequantise")
        assert scale.zero.dtype is not None
        _describe(down.outputs[0], f"{name}.integers", value.shape, scale.zero.dtype)
        _describe(up.outputs[0], f"{name}.rounded", value.shape, ir.DataType.FLOAT)
        maker = value.producer()
        if maker is None:
            self._graph.insert_before(self._graph[0], [down, up])
        else:
            self._graph.insert_after(maker, [down, up])
        return up.outputs[0]

    def _as_signed(self, value: ir.Value) -> ir.Value:
        if value not in self._signed:
            original = self._dequantised.get(value, value)
            self._signed[value] = self._through(
                value, self._scale(original, signed=True), ".signed"
            )
        return self._signed[value]

    def _constant(self, node: ir.Node, value: ir.Value) -> ir.Value:
        held = constant_of(value)
        assert held is not None
        scale = self._scale(_stands_with(node, value))
        codes = np.rint(held.numpy().astype(np.float32) / scale.step) + scale.offset
        name = f"{node.name}.{value.name}"
        integers = self._initializer(
            f"{name}.integers", np.asarray(np.clip(codes, 0, _LEVELS), np.uint16)
        )
        return self._read_back(node, [integers, scale.scale, scale.zero], name)

    def _matrix(self, node: ir.Node, held: ir.TensorProtocol) -> ir.Value:
        """Rows are outputs: the last axis is summed over in a Gemm of ours, the first in others."""
        name = str(held.name)
        if name not in self._matrices:
            axis = 0 if "transB" in node.attributes else 1
            codes, scales = self._weights.quantised(held, self._how.bits, axis)
            integers = self._initializer(f"{name}.codes", codes)
            scale = self._initializer(f"{name}.scales", scales)
            assert integers.dtype is not None
            zeros = ir.Tensor(
                np.zeros(scales.shape, np.int8).astype(integers.dtype.numpy()), integers.dtype
            )
            zero = self._initializer(f"{name}.zeros", zeros)
            self._matrices[name] = self._read_back(
                self._graph[0], [integers, scale, zero], name, axis=axis
            )
        return self._matrices[name]

    def _read_back(
        self, reader: ir.Node, inputs: list[ir.Value], name: str, axis: int | None = None
    ) -> ir.Value:
        attributes = [] if axis is None else [ir.Attr("axis", ir.AttributeType.INT, axis)]
        node = ir.Node("", "DequantizeLinear", inputs, attributes, name=f"{name}.dequantise")
        _describe(node.outputs[0], f"{name}.rounded", inputs[0].shape, ir.DataType.FLOAT)
        self._graph.insert_before(reader, node)
        return node.outputs[0]

    def _scale(self, value: ir.Value, signed: bool = False) -> _Scale:
        root = self._groups.root(value)
        if (root, signed) not in self._scales:
            least, most = self._ranges[root]
            name = f"{root.name}.{'signed' if signed else 'unsigned'}"
            zero: NDArray[np.generic]
            if signed:
                step, zero = max(-least, most, _LEAST_RANGE) / _SYMMETRIC, np.array(0, np.int16)
            else:
                step = max(most - least, _LEAST_RANGE) / _LEVELS
                zero = np.array(np.clip(np.rint(-least / step), 0, _LEVELS), np.uint16)
            self._scales[root, signed] = _Scale(
                self._initializer(f"{name}.scale", np.array(step, np.float32)),
                self._initializer(f"{name}.zero", zero),
                float(np.float32(step)),
                int(zero),
            )
        return self._scales[root, signed]

    def _initializer(self, name: str, held: NDArray[np.generic] | ir.TensorProtocol) -> ir.Value:
        tensor = ir.Tensor(held, name=name) if isinstance(held, np.ndarray) else held
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value


def _describe(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.name, value.shape, value.type = name, shape, ir.TensorType(dtype)


def _stands_with(node: ir.Node, constant: ir.Value) -> ir.Value:
    """A constant that is moved has the scale of what it is put beside; a constant may be read in
    many places, so it joins none of them."""
    return node.outputs[0] if node.op_type in MOVES else constant


class _Groups:
    """Values that only move stand for the same integers before and after."""

    def __init__(self, nodes: list[ir.Node]) -> None:
        self._above: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            if node.op_type in MOVES:
                ends = [
                    value
                    for value in (*node.inputs, *node.outputs)
                    if value is not None and value.dtype in FLOATS and constant_of(value) is None
                ]
                for value in ends[1:]:
                    self._join(value, ends[0])

    def root(self, value: ir.Value) -> ir.Value:
        while value in self._above:
            value = self._above[value]
        return value

    def _join(self, one: ir.Value, other: ir.Value) -> None:
        one, other = self.root(one), self.root(other)
        if one is not other:
            self._above[one] = other
