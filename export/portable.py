"""A stored graph goes in; the same model in ONNX Runtime's own ops comes out, beside the first.

Float weights and what our ops' bodies read stay the blobs they are. Packed products become
MatMulNBits, whose weights are blobs of their own with the very same values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as standard

from edgewright.artifacts import Blob, PackageWriter
from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops import DOMAIN
from edgewright.custom_ops.gated_matmul.lower import activated
from edgewright.custom_ops.packed_weights import QuantizedMatrix, unpack
from edgewright.custom_ops.recorder import MICROSOFT, Recorder
from edgewright.export.graph import Graph
from edgewright.export.passes import simplify
from edgewright.export.portable_weights import WIDTHS, PortableRows, portable_rows
from edgewright.export.state_order import prove_state_order
from edgewright.export.stored import Stored

_ALIGNMENT = 64
_LOWERED = ("BlockMatMul", "GatedMatMul", "BlockGather")
_NUMPY_TYPES = {
    "uint8": ir.DataType.UINT8,
    "float16": ir.DataType.FLOAT16,
    "float32": ir.DataType.FLOAT,
    "int64": ir.DataType.INT64,
}


@dataclass(frozen=True)
class Products:
    """How a provider wants MatMulNBits: the widths it takes, the type of scales, and the sizes of
    what a node gives where the graph's are to be numbers. Without `gathers`, rows of a table are
    fetched from a weight that is left as it is."""

    widths: tuple[int, ...] = WIDTHS
    scales: str = "float32"
    sizes: Callable[[ir.Value], ir.Shape | None] = lambda _: None
    gathers: bool = True


@dataclass(frozen=True)
class _Lowered:
    """What a packed weight has become: initializers by part, for each run of rows."""

    runs: tuple[tuple[PortableRows, tuple[ir.Value, ...]], ...]
    column_scale: ir.Value | None
    column_order: ir.Value | None
    blobs: Mapping[str, Blob]

    @property
    def widths(self) -> set[int]:
        return {rows.bits for rows, _ in self.runs}


class _Recorder(Recorder):
    def __init__(self, prefix: str, shape: ir.Shape | None) -> None:
        super().__init__(prefix)
        self._shape = shape

    def product(self, x: ir.Value, weights: Sequence[ir.Value], rows: PortableRows) -> ir.Value:
        sizes = {"K": rows.columns, "N": rows.rows, "bits": rows.bits, "block_size": rows.block}
        output = ir.Value(name=f"{self._prefix}MatMulNBits_{len(self._tape.nodes)}")
        if self._shape is not None:
            output.type = ir.TensorType(ir.DataType.FLOAT)
            output.shape = ir.Shape([*self._shape[:-1], rows.rows])
        return self._tape.op("MatMulNBits", [x, *weights], sizes, domain=MICROSOFT, output=output)


def make_portable(stored: Stored, writer: PackageWriter) -> Stored:
    """Requires function bodies for all our ops. Ensures: no node and no function of ours."""
    model = ir.serde.deserialize_model(ir.serde.serialize_model(stored.graph.model))
    lowered = lower_products(model, stored.packed, writer)
    standard.RemoveUnusedNodesPass()(model)
    standard.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    standard.InlinePass()(model)
    # What a body decides by its attributes is known now; some builds compare no strings.
    simplify(model)
    model.opset_imports.pop(DOMAIN, None)
    graph = Graph(model, stored.graph.layout)
    prove_state_order(graph)
    as_they_are = {name: blob for name, blob in stored.packed.items() if name not in lowered}
    widths = {bits for weight in lowered.values() for bits in weight.widths}
    for blob in as_they_are.values():
        (matrix, *_) = _unpacked(writer, blob)
        widths |= {segment.bits for segment in matrix.segments}
    return replace(
        stored,
        graph=graph,
        packed=as_they_are | blobs_of(lowered),
        packed_dtypes=tuple(f"int{bits}" for bits in sorted(widths)),
    )


def blobs_of(lowered: Mapping[str, _Lowered]) -> dict[str, Blob]:
    return {name: blob for weight in lowered.values() for name, blob in weight.blobs.items()}


def lower_products(
    model: ir.Model, packed: Mapping[str, Blob], writer: PackageWriter, form: Products | None = None
) -> dict[str, _Lowered]:
    """Ensures: no product of ours with a packed matrix, but MatMulNBits; the weights by name."""
    graph, form = model.graph, form or Products()
    found: dict[str, _Lowered] = {}
    for node in list(graph):
        weight = node.inputs[1] if node.op_type in _LOWERED and node.domain == DOMAIN else None
        if weight is None or weight.name is None or weight.name not in packed:
            continue
        if node.op_type == "BlockGather" and not (form.gathers and _is_multiplied(weight)):
            continue  # its body reads the rows that are asked for, of the very same blob
        if weight.name not in found:
            found[weight.name] = _lower(graph, weight, packed[weight.name], writer, form)
        old = node.outputs[0]
        op = _Recorder(f"{node.name}_", form.sizes(old))
        value = _WRITERS[node.op_type](op, node, found[weight.name])
        graph.insert_before(node, op.nodes)
        value.type, value.shape = old.type, form.sizes(old) or old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        value.name, old.name = old.name, f"{old.name}_replaced"
        graph.remove(node, safe=True)
    if found:
        model.opset_imports[MICROSOFT] = 1
    return found


def _lower(
    graph: ir.Graph, weight: ir.Value, blob: Blob, writer: PackageWriter, form: Products
) -> _Lowered:
    (matrix, *others) = _unpacked(writer, blob)
    if others:
        raise ExportError(f"{weight.name} is a stack of matrices; a single one is required")
    runs = portable_rows(matrix, form.gathers and _is_gathered(weight), form.widths)
    # Floats in a blob of their own: codes are the same for every type that is computed in.
    codes: dict[str, NDArray[np.generic]] = {}
    floats: dict[str, NDArray[np.generic]] = {}
    for i, rows in enumerate(runs):
        codes[f"{weight.name}.codes{i}"] = rows.codes
        floats[f"{weight.name}.scales{i}"] = rows.scales.astype(form.scales)
        if rows.zeros is not None:
            codes[f"{weight.name}.zeros{i}"] = rows.zeros
    if matrix.column_scale is not None:
        floats[f"{weight.name}.columns"] = matrix.column_scale.astype(form.scales)
    if matrix.column_order is not None:
        codes[f"{weight.name}.order"] = matrix.column_order
    values: dict[str, ir.Value] = {}
    blobs: dict[str, Blob] = {}
    for name, arrays in ((f"{weight.name}", codes), (f"{weight.name}.scales", floats)):
        blobs[name] = writer.add_blob(_pieces(arrays.values()))
        values |= _initializers(graph, blobs[name], arrays)
    return _Lowered(
        tuple(
            (
                rows,
                tuple(
                    values[name]
                    for part in ("codes", "scales", "zeros")
                    if (name := f"{weight.name}.{part}{i}") in values
                ),
            )
            for i, rows in enumerate(runs)
        ),
        values.get(f"{weight.name}.columns"),
        values.get(f"{weight.name}.order"),
        blobs,
    )


def _unpacked(writer: PackageWriter, blob: Blob) -> tuple[QuantizedMatrix, ...]:
    return unpack(np.memmap(writer.path_of(blob), dtype=np.uint8, mode="r"))


def _pieces(arrays: Iterable[NDArray[np.generic]]) -> Iterator[bytes]:
    for array in arrays:
        yield np.ascontiguousarray(array).tobytes()
        yield bytes(-array.nbytes % _ALIGNMENT)


def _initializers(
    graph: ir.Graph, blob: Blob, arrays: Mapping[str, NDArray[np.generic]]
) -> Iterator[tuple[str, ir.Value]]:
    offset = 0
    for name, array in arrays.items():
        kind, shape = _NUMPY_TYPES[array.dtype.name], ir.Shape(array.shape)
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=shape)
        value.const_value = ir.ExternalTensor(
            location=blob.path,
            offset=offset,
            length=array.nbytes,
            dtype=kind,
            shape=shape,
            name=name,
        )
        graph.register_initializer(value)
        offset += array.nbytes + -array.nbytes % _ALIGNMENT
        yield name, value


def _product(op: _Recorder, x: ir.Value, weight: _Lowered) -> ir.Value:
    if weight.column_order is not None:
        x = op("Gather", x, weight.column_order, axis=-1)
    if weight.column_scale is not None:
        x = op("Mul", x, op("CastLike", weight.column_scale, x))
    parts = [op.product(x, values, rows) for rows, values in weight.runs]
    return parts[0] if len(parts) == 1 else op("Concat", *parts, axis=-1)


def _multiply(op: _Recorder, node: ir.Node, weight: _Lowered) -> ir.Value:
    return _product(op, _input(node), weight)


def _gated(op: _Recorder, node: ir.Node, weight: _Lowered) -> ir.Value:
    gate, up = op.several("Split", 2, _product(op, _input(node), weight), axis=-1, num_outputs=2)
    return op("Mul", activated(op, gate, node.attributes["activation"].as_string()), up)


def _gather(op: _Recorder, node: ir.Node, weight: _Lowered) -> ir.Value:
    """Rows of codes, widened after they are fetched."""
    ids = _input(node)
    ((rows, values),) = weight.runs
    blocks, last = rows.scales.shape[1], (rows.columns,)
    own = [op("Gather", value, ids, axis=0) for value in values]
    leading = op("Shape", ids)
    codes = op("Reshape", own[0], op("Concat", leading, (-1,), axis=0))
    steps = _widened(op, codes, leading, rows.bits)
    by_block = op("Concat", leading, (blocks, rows.block), axis=0)
    steps = op("Reshape", steps, by_block)
    if rows.zeros is None:
        steps = op("Sub", steps, float(1 << (rows.bits - 1)))
    else:
        zeros = _widened(op, own[2], leading, rows.bits)
        zeros = op("Slice", zeros, (0,), (blocks,), (-1,))
        steps = op("Sub", steps, op("Unsqueeze", zeros, (-1,)))
    found = op("Mul", steps, op("Unsqueeze", own[1], (-1,)))
    found = op("Reshape", found, op("Concat", leading, (-1,), axis=0))
    found = op("Slice", found, (0,), last, (-1,))
    if weight.column_scale is not None:
        found = op("Mul", found, weight.column_scale)
    if weight.column_order is None:
        return found
    every = op("Range", 0, rows.columns, 1)
    places = op("ScatterElements", weight.column_order, weight.column_order, every, axis=0)
    return op("Gather", found, places, axis=-1)


def _widened(op: _Recorder, codes: ir.Value, leading: ir.Value, bits: int) -> ir.Value:
    """Bytes of 8 / bits codes each → float32 codes."""
    if bits == 8:
        return op("Cast", codes, to=ir.DataType.FLOAT)
    mask = op("Cast", (1 << bits) - 1, to=ir.DataType.UINT8)
    parts = []
    for i in range(8 // bits):
        by = op("Cast", i * bits, to=ir.DataType.UINT8)
        shifted = op("BitShift", codes, by, direction="RIGHT")
        parts.append(op("Unsqueeze", op("BitwiseAnd", shifted, mask), (-1,)))
    each = op("Concat", *parts, axis=-1)
    flat = op("Reshape", each, op("Concat", leading, (-1,), axis=0))
    return op("Cast", flat, to=ir.DataType.FLOAT)


_WRITERS = {"BlockMatMul": _multiply, "GatedMatMul": _gated, "BlockGather": _gather}


def _input(node: ir.Node) -> ir.Value:
    assert node.inputs[0] is not None
    return node.inputs[0]


def _is_gathered(weight: ir.Value) -> bool:
    return any(use.node.op_type == "BlockGather" for use in weight.uses())


def _is_multiplied(weight: ir.Value) -> bool:
    return any(use.node.op_type != "BlockGather" for use in weight.uses())
