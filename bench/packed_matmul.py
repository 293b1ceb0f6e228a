"""BlockMatMul with packed weights beside ONNX Runtime's MatMulNBits and what the machine gives.

    python bench/packed_matmul.py [--threads 1] [--rounds 15] [--block 128] [--isa avx2] [--json]

Decoding reads a new weight from memory for every product (GB/s of stored bytes, and microseconds);
prefill multiplies 512 rows with one weight (GOP/s). All that is compared is measured in turns;
medians are printed. Ours has outliers among its weights, one in 200, but at 8 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from machine import Machine
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from edgewright.custom_ops import DOMAIN
from edgewright.custom_ops.compiler import build, buildable_host
from edgewright.custom_ops.packed_weights import (
    BLOCKS,
    MOST_SHIFT,
    WIDTHS,
    Outliers,
    QuantizedMatrix,
    QuantizedRows,
    pack,
)

COLD_BYTES = 96 << 20  # more than any cache holds
PREFILL_ROWS = 512
SHAPES = ((2048, 2048), (8192, 2048), (2048, 8192))  # N, K
OUTLIERS = 1 / 200
ORT_BITS, ORT_BLOCKS = (2, 4, 8), (32, 128)


@dataclass(frozen=True)
class Weight:
    """How one product's weight is stored; `ours`, or MatMulNBits with integer arithmetic."""

    ours: bool
    bits: int
    block: int

    @property
    def name(self) -> str:
        return f"{'ours' if self.ours else 'ORT'} {self.bits} bits/{self.block}"


@dataclass(frozen=True)
class Row:
    kind: str
    rows: int
    n: int
    k: int
    weights: str
    microseconds: float  # of one product
    rate: float  # bytes or operations a second
    fraction: float  # of the machine's bandwidth or peak


def blob(n: int, k: int, bits: int, block: int) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    places = rng.choice(n * k, round(n * k * OUTLIERS), replace=False)
    values = rng.integers(-32, 32, places.size).astype(np.int8)
    rows = QuantizedRows(
        bits,
        block,
        rng.integers(0, 1 << bits, (n, k), dtype=np.uint8),
        0,
        np.full(n, 2.0**-12, np.float32),
        rng.integers(64, 256, (n, k // block), dtype=np.uint8),
        None,
        None,
        MOST_SHIFT[bits],
        Outliers(places // k, places % k, values) if bits < 8 else None,
    )
    return pack([QuantizedMatrix((rows,), None)])


class Product:
    """A session of one graph: the same x times each of `count` weights."""

    def __init__(
        self, n: int, k: int, rows: int, weight: Weight, folder: Path, options: argparse.Namespace
    ) -> None:
        self.n, self.k, self.rows, self.weight = n, k, rows, weight
        if weight.ours:
            parts = [blob(n, k, weight.bits, weight.block)]
        else:
            rng = np.random.default_rng(0)
            shape = (n, k // weight.block, weight.block * weight.bits // 8)
            scales = rng.uniform(1e-3, 1e-2, shape[:2]).astype(np.float32)
            parts = [rng.integers(0, 256, shape, dtype=np.uint8), scales]
        stored = sum(part.nbytes for part in parts)
        self.count = max(1, COLD_BYTES // stored) if rows == 1 else 1
        self.bytes, self.operations = stored * self.count, 2.0 * rows * n * k * self.count
        path = folder / f"{weight.ours}-{weight.bits}-{weight.block}-{rows}"
        with path.open("wb") as file:
            for i in range(self.count):
                if not weight.ours:  # ONNX Runtime would share the packed copies of equal weights
                    parts[0].reshape(-1)[:2] = divmod(i, 256)
                for part in parts:
                    file.write(part.tobytes())
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        key = "session.model_external_initializers_file_folder_path"
        session_options.add_session_config_entry(key, str(folder))
        if options.isa:
            session_options.add_session_config_entry("edgewright.isa", options.isa)
        session_options.register_custom_ops_library(str(build(buildable_host()).path))
        model = self._model(parts, path.name)
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(model, session_options, providers=providers)
        self.binding = self.session.io_binding()
        x = np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)
        self.binding.bind_cpu_input("x", x)
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(self.binding)

    def _model(self, parts: list[NDArray[Any]], location: str) -> bytes:
        nodes, weights, outputs, offset = [], [], [], 0
        for i in range(self.count):
            names = [f"w{i}_{j}" for j in range(len(parts))]
            for name, part in zip(names, parts, strict=True):
                element = helper.np_dtype_to_tensor_dtype(part.dtype)
                tensor = TensorProto(name=name, data_type=element, dims=part.shape)
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": location, "offset": offset, "length": part.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                weights.append(tensor)
                offset += part.nbytes
            nodes.append(self._node(names, f"y{i}"))
            shape = [self.rows, self.n]
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, shape))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.rows, self.k])
        graph = helper.make_graph(nodes, "bench", [x], outputs, weights)
        imports = [helper.make_opsetid(name, v) for name, v in (("", 23), (DOMAIN, 1), (_ORT, 1))]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return bytes(model.SerializeToString())

    def _node(self, weights: list[str], output: str) -> NodeProto:
        if self.weight.ours:
            return helper.make_node("BlockMatMul", ["x", *weights], [output], domain=DOMAIN)
        attributes = {
            "N": self.n,
            "K": self.k,
            "bits": self.weight.bits,
            "block_size": self.weight.block,
            "accuracy_level": 4,  # int8 activations, as ours
        }
        return helper.make_node("MatMulNBits", ["x", *weights], [output], domain=_ORT, **attributes)

    def seconds(self) -> float:
        begin = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return time.perf_counter() - begin


_ORT = "com.microsoft"


def measure(
    n: int, k: int, rows: int, machine: Machine, folder: Path, options: argparse.Namespace
) -> list[Row]:
    kinds = [Weight(True, bits, options.block) for bits in WIDTHS]
    kinds += [Weight(False, bits, block) for bits in ORT_BITS for block in ORT_BLOCKS]
    products = [Product(n, k, rows, weight, folder, options) for weight in kinds]
    decode = rows == 1
    limit = machine.read_bytes_per_second if decode else machine.byte_operations_per_second
    seconds: list[list[float]] = [[] for _ in products]
    limits = []
    for _ in range(options.rounds):
        limits.append(limit())
        for product, found in zip(products, seconds, strict=True):
            found.append(product.seconds())
    bound = float(np.median(limits))
    made = []
    for product, found in zip(products, seconds, strict=True):
        median = float(np.median(found))
        rate = (product.bytes if decode else product.operations) / median
        kind = "decode" if decode else "prefill"
        each = median / product.count * 1e6
        made.append(Row(kind, rows, n, k, product.weight.name, each, rate, rate / bound))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=int, default=128, choices=BLOCKS, help="of our weights")
    parser.add_argument("--isa", help="a lower instruction set than this processor's best")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = Machine(options.threads)
    rows: list[Row] = []
    for n, k in SHAPES:
        for m in (1, PREFILL_ROWS):
            print(f"N {n}, K {k}, {m} rows ...", file=sys.stderr)
            with TemporaryDirectory() as folder:
                rows += measure(n, k, m, machine, Path(folder), options)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        name, of = ("GB/s", "bandwidth") if row.kind == "decode" else ("GOP/s", "the peak")
        print(
            f"{row.kind:8} {row.rows:3} rows N {row.n:5} K {row.k:5} {row.weights:16} "
            f"{row.microseconds:9.1f} us {row.rate / 1e9:7.1f} {name}, {row.fraction:4.0%} of {of}"
        )


if __name__ == "__main__":
    main()
