"""BlockMatMul's speed beside what the machine gives and beside ONNX Runtime's own MatMul.

    python bench/block_matmul.py [--threads 1] [--rounds 15] [--isa avx2] [--json]

Decoding reads a new weight from memory for every product (GB/s of weights); prefill multiplies 64
or 512 rows with one weight (GFLOP/s). All that is compared is measured in turns; medians are
printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import onnxruntime as ort
from machine import Machine
from onnx import TensorProto, helper

from edgewright.custom_ops import DOMAIN
from edgewright.custom_ops.compiler import build, buildable_host

COLD_BYTES = 192 << 20  # more than any cache holds
PREFILL_ROWS = (64, 512)  # a short prompt and a chunk of a long one
SHAPES = ((2048, 2048), (8192, 2048), (2048, 8192))  # N, K
DTYPES = {
    "float32": (np.float32, TensorProto.FLOAT),
    "float16": (np.float16, TensorProto.FLOAT16),
    "bfloat16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
}


@dataclass(frozen=True)
class Row:
    kind: str
    rows: int
    n: int
    k: int
    weights: str
    rate: float  # bytes or operations a second
    fraction: float  # of the machine's bandwidth or peak


class Product:
    """A session of one graph: the same x times each of `count` weights, ours or ONNX Runtime's."""

    def __init__(
        self, n: int, k: int, rows: int, weights: str, folder: Path, options: argparse.Namespace
    ) -> None:
        self.ours = weights in DTYPES
        kind, element = DTYPES[weights if self.ours else "float32"]
        size = n * k * np.dtype(kind).itemsize
        self.count = max(1, COLD_BYTES // size) if rows == 1 else 1
        self.weight_bytes, self.operations = size * self.count, 2.0 * rows * n * k * self.count
        shape = [n, k] if self.ours else [k, n]
        path = folder / f"{weights}-{n}-{k}-{self.count}"
        if not path.exists():
            block = (np.random.default_rng(0).standard_normal(shape) / 30).astype(kind)
            with path.open("wb") as file:
                for i in range(self.count):
                    block[0, 0] = i  # ONNX Runtime would share the packed copies of equal weights
                    file.write(block.tobytes())
        model = self._model(shape, rows, element, size, path.name)
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        key = "session.model_external_initializers_file_folder_path"
        session_options.add_session_config_entry(key, str(folder))
        if options.isa:
            session_options.add_session_config_entry("edgewright.isa", options.isa)
        session_options.register_custom_ops_library(str(build(buildable_host()).path))
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(model, session_options, providers=providers)
        self.binding = self.session.io_binding()
        x = np.random.default_rng(1).standard_normal((rows, k)).astype(np.float32)
        self.binding.bind_cpu_input("x", x)
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name, "cpu")
        self.session.run_with_iobinding(self.binding)

    def _model(self, shape: list[int], rows: int, element: int, size: int, location: str) -> bytes:
        n, k = shape if self.ours else reversed(shape)
        nodes, weights, outputs = [], [], []
        for i in range(self.count):
            weight = TensorProto(name=f"w{i}", data_type=element, dims=shape)
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": location, "offset": i * size, "length": size}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            op, domain = ("BlockMatMul", DOMAIN) if self.ours else ("MatMul", "")
            nodes.append(helper.make_node(op, ["x", f"w{i}"], [f"y{i}"], domain=domain))
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [rows, n]))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])
        graph = helper.make_graph(nodes, "bench", [x], outputs, weights)
        imports = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return bytes(model.SerializeToString())

    def seconds(self) -> float:
        begin = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return time.perf_counter() - begin


def measure(
    n: int, k: int, rows: int, machine: Machine, folder: Path, options: argparse.Namespace
) -> list[Row]:
    names = [*DTYPES, "ORT float32"]
    products = {name: Product(n, k, rows, name, folder, options) for name in names}
    limit = machine.read_bytes_per_second if rows == 1 else machine.operations_per_second
    rates: dict[str, list[float]] = {name: [] for name in names}
    limits = []
    for _ in range(options.rounds):
        limits.append(limit())
        for name, product in products.items():
            work = product.weight_bytes if rows == 1 else product.operations
            rates[name].append(work / product.seconds())
    bound = float(np.median(limits))
    kind = "decode" if rows == 1 else "prefill"
    medians = {name: float(np.median(found)) for name, found in rates.items()}
    return [Row(kind, rows, n, k, name, rate, rate / bound) for name, rate in medians.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", help="a lower instruction set than this processor's best")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = Machine(options.threads)
    rows: list[Row] = []
    for n, k in SHAPES:
        for m in (1, *PREFILL_ROWS):
            print(f"N {n}, K {k}, {m} rows ...", file=sys.stderr)
            with TemporaryDirectory() as folder:
                rows += measure(n, k, m, machine, Path(folder), options)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        unit = "GB/s of bandwidth" if row.kind == "decode" else "GFLOP/s of the peak"
        name, of = unit.split(" ", 1)
        print(
            f"{row.kind:8} {row.rows:3} rows N {row.n:5} K {row.k:5} {row.weights:12} "
            f"{row.rate / 1e9:7.1f} {name}, {row.fraction:4.0%} {of}"
        )


if __name__ == "__main__":
    main()
