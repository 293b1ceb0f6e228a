"""Initializers go in; the same values in the type that a provider computes in come out, large ones
as blobs of the package that its graphs, and other providers, share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgewright.artifacts import Blob, PackageWriter
from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.packed_weights import unpack

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_PIECE_VALUES = 1 << 20
# Of the largest value in a row, what the largest integer may stand for.
_SHARES = {8: (1.0,), 4: (1.0, 0.9, 0.8, 0.7, 0.6)}
_LEAST_SCALE = 1e-12
_BLOB_BYTES = 16 << 10  # what is smaller travels inside the graph


class WeightConverter:
    """For the graphs of one variant: what is converted once is a blob for all of them."""

    def __init__(self, blobs: Iterable[Blob], writer: PackageWriter) -> None:
        self._blobs = {blob.path: blob for blob in blobs}
        self._writer = writer
        self._converted: dict[tuple[str, ir.DataType], Blob] = {}
        # What quantised matrices take besides blobs, and how many values lay within the graph.
        self.quantised_bytes = self.quantised_values = 0
        self._quantised: dict[
            tuple[str, int, int], tuple[ir.TensorProtocol, NDArray[np.float32]]
        ] = {}

    def tensor(self, held: ir.TensorProtocol, dtype: ir.DataType) -> ir.TensorProtocol:
        """The tensor in another float type; the very same where it has it already."""
        if held.dtype == dtype:
            return held
        name = f"{held.name}.{dtype.short_name()}"
        if not isinstance(held, ir.ExternalTensor):
            return ir.Tensor(_rounded(held.numpy(), dtype, name), name=name)
        key = (str(held.location), dtype)
        if key not in self._converted:
            values = np.memmap(self._path(held), dtype=held.dtype.numpy(), mode="r")
            self._converted[key] = self.keep(self._writer.add_blob(_pieces(values, dtype, name)))
        return _external(self._converted[key], dtype, tuple(held.shape.numpy()), name)

    def unpacked(self, held: ir.ExternalTensor, rank: int, dtype: ir.DataType) -> ir.TensorProtocol:
        """The values of a packed blob: a matrix [N, K], or a stack of them [E, N, K]."""
        matrices = unpack(np.memmap(self._path(held), dtype=np.uint8, mode="r"))
        name = f"{held.name}.unpacked"
        sizes = (matrices[0].rows, matrices[0].columns)
        shape = sizes if rank == 2 else (len(matrices), *sizes)
        if rank == 2 and len(matrices) > 1:
            raise ExportError(f"{held.name} is a stack of matrices; a single one is required")
        key = (f"{held.location} unpacked", dtype)
        if key not in self._converted:
            pieces = (_bytes(_rounded(matrix.dequantised(), dtype, name)) for matrix in matrices)
            self._converted[key] = self.keep(self._writer.add_blob(pieces))
        return _external(self._converted[key], dtype, shape, name)

    def quantised(
        self, held: ir.TensorProtocol, bits: int, axis: int
    ) -> tuple[ir.TensorProtocol, NDArray[np.float32]]:
        """A matrix as symmetric integers of `bits`, and the scale of each place along `axis`."""
        key = (str(getattr(held, "location", held.name)), bits, axis)
        if key not in self._quantised:
            values: NDArray[np.generic]
            if isinstance(held, ir.ExternalTensor):
                values = np.memmap(self._path(held), dtype=held.dtype.numpy(), mode="r")
            else:
                values = held.numpy()
            shape = tuple(held.shape.numpy())
            codes, scales = symmetric(values.reshape(shape).astype(np.float32), bits, axis)
            made = self._integers(codes, bits, f"{held.name}.int{bits}")
            self._quantised[key] = (made, scales)
            self.quantised_bytes += scales.nbytes
            if not isinstance(made, ir.ExternalTensor):
                self.quantised_bytes += made.nbytes
            if not isinstance(held, ir.ExternalTensor):
                self.quantised_values += held.size
        return self._quantised[key]

    def _integers(self, codes: NDArray[np.int8], bits: int, name: str) -> ir.TensorProtocol:
        dtype = ir.DataType.INT8 if bits == 8 else ir.DataType.INT4
        if codes.nbytes <= _BLOB_BYTES:
            return ir.Tensor(codes.astype(dtype.numpy()), dtype, name=name)
        data = _bytes(codes) if bits == 8 else _bytes(_pairs(codes))
        return _external(self.keep(self._writer.add_blob([data])), dtype, codes.shape, name)

    def large(self, values: NDArray[np.generic], name: str) -> ir.TensorProtocol:
        """A tensor of ours: a blob where it is large."""
        if values.nbytes <= _BLOB_BYTES:
            return ir.Tensor(values, name=name)
        blob = self.keep(self._writer.add_blob([_bytes(values)]))
        return _external(blob, ir.DataType.from_numpy(values.dtype), values.shape, name)

    def keep(self, blob: Blob) -> Blob:
        self._blobs[blob.path] = blob
        return blob

    def blob_of(self, held: ir.ExternalTensor) -> Blob:
        return self._blobs[str(held.location)]

    def _path(self, held: ir.ExternalTensor) -> str:
        return str(self._writer.path_of(self.blob_of(held)))


def _external(
    blob: Blob, dtype: ir.DataType, shape: tuple[int, ...], name: str
) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location=blob.path,
        offset=0,
        length=blob.size,
        dtype=dtype,
        shape=ir.Shape(shape),
        name=name,
    )


def _pieces(values: NDArray[np.generic], dtype: ir.DataType, name: str) -> Iterator[bytes]:
    for offset in range(0, values.size, _PIECE_VALUES):
        yield _bytes(_rounded(values[offset : offset + _PIECE_VALUES], dtype, name))


def _rounded(values: NDArray[np.generic], dtype: ir.DataType, name: str) -> NDArray[np.generic]:
    with np.errstate(over="ignore"):
        rounded: NDArray[np.generic] = values.astype(np.float32).astype(dtype.numpy())
    if np.isfinite(values.astype(np.float32)).sum() != np.isfinite(rounded).sum():
        raise ExportError(f"{name}: values beyond the range of the type; compute in float32")
    return rounded


def symmetric(
    values: NDArray[np.float32], bits: int, axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers from -most to most, and scales: of the few tried, those that err least."""
    most = (1 << (bits - 1)) - 1
    other = 1 - axis
    largest = np.maximum(np.abs(values).max(axis=other, keepdims=True), _LEAST_SCALE * most)
    best, scales = np.full(largest.shape, np.inf, np.float32), largest / most
    for share in _SHARES[bits]:
        scale = largest * np.float32(share) / most
        codes = np.clip(np.rint(values / scale), -most, most)
        error = np.square(codes * scale - values).sum(axis=other, keepdims=True)
        scales = np.where(error < best, scale, scales)
        best = np.minimum(best, error)
    codes = np.clip(np.rint(values / scales), -most, most)
    return codes.astype(np.int8), scales.reshape(-1).astype(np.float32)


def _pairs(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two to a byte, the first in its lower half."""
    flat = codes.reshape(-1).astype(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    pairs = flat[0::2] | (flat[1::2] << 4)
    return pairs.astype(np.uint8)


def _bytes(values: NDArray[np.generic]) -> bytes:
    return np.ascontiguousarray(values).tobytes()
