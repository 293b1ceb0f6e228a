"""One op in a graph of its own, run by ONNX Runtime: with the library in any instruction set, or by
its function body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgewright.custom_ops import DOMAIN, OPS, OpSpec
from edgewright.custom_ops.compiler import Library
from edgewright.custom_ops.onnx_functions import attach_functions
from lab.arm64_worker import run
from tests.custom_ops import emulated

Array = np.ndarray


def overload_of(spec: OpSpec, dtypes: Mapping[str, ir.DataType | None]) -> str:
    """A weight that may be of floats has another body when it is packed."""
    weights = [t.name for t in spec.inputs if t.type == "W"]
    return "packed" if any(dtypes[name] == ir.DataType.UINT8 for name in weights) else ""


@dataclass
class SingleOp:
    """`stored` inputs become initializers; with a `folder` they are mapped from an external file in
    which each begins `misaligned` bytes past its alignment. Those in `symbolic` have no sizes."""

    name: str
    inputs: Mapping[str, Array]
    attributes: Mapping[str, int | float | str] = field(default_factory=dict)
    stored: Sequence[str] = ()
    symbolic: Sequence[str] = ()
    folder: Path | None = None
    misaligned: int = 0

    def model(self, body: bool) -> ir.Model:
        spec = OPS[self.name]
        values = {}
        for tensor in spec.inputs:
            array = self.inputs[tensor.name]
            kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            names = [f"{tensor.name}_{i}" for i in range(array.ndim)]
            shape = ir.Shape(names if tensor.name in self.symbolic else array.shape)
            value = ir.Value(name=tensor.name, shape=shape, type=kind)
            if tensor.name in self.stored:
                value.const_value = ir.tensor(array, name=tensor.name)
            values[tensor.name] = value
        attributes = ir.convenience.convert_attributes(dict(self.attributes))
        node = ir.Node(
            DOMAIN,
            self.name,
            list(values.values()),
            attributes,
            overload=overload_of(spec, {n: v.dtype for n, v in values.items()}),
            num_outputs=len(spec.outputs),
            version=1,
        )
        for tensor, output in zip(spec.outputs, node.outputs, strict=True):
            binding = {t.type: values[t.name].dtype for t in spec.inputs}
            dtype = binding.get(tensor.type, ir.DataType.FLOAT)
            output.name, output.type = tensor.name, ir.TensorType(dtype)
        graph = ir.Graph(
            [value for name, value in values.items() if name not in self.stored],
            node.outputs,
            nodes=[node],
            initializers=[values[name] for name in self.stored],
            opset_imports={"": 23, DOMAIN: 1},
            name="single_op",
        )
        model = ir.Model(graph, ir_version=10)
        if body:
            attach_functions(model)
        return model

    def session(
        self, library: Library | None, isa: str | None = None, threads: int = 1
    ) -> ort.InferenceSession | emulated.Session:
        """With a library the body is left out, so that nothing but the kernel can have run."""
        serialized = self.serialized(library)
        if isa is not None and library is not None and emulated.ROOT:
            return emulated.open_session(self.name, serialized, library, isa, self.folder, threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if isa is not None:
            options.add_session_config_entry("edgewright.isa", isa)
        if library is not None:
            options.register_custom_ops_library(str(library.path))
        if self.folder is not None:
            key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(key, str(self.folder))
        return ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])

    def serialized(self, library: Library | None) -> bytes:
        proto = ir.serde.serialize_model(self.model(body=library is None))
        if self.folder is not None:
            self._move_out(proto)
        return proto.SerializeToString()

    def run(
        self,
        library: Library | None,
        isa: str | None = None,
        threads: int = 1,
        in_place: bool = False,
    ) -> list[Array]:
        """The outputs. `in_place` binds each pair of the spec's as one value, read and written."""
        session = self.session(library, isa, threads)
        feed = {name: array for name, array in self.inputs.items() if name not in self.stored}
        pairs = OPS[self.name].in_place if in_place else ()
        if isinstance(session, emulated.Session):
            return session.run(None, feed, pairs)
        return run(session, feed, pairs)

    def _move_out(self, proto: onnx.ModelProto) -> None:
        assert self.folder is not None
        with (self.folder / "weights").open("wb") as file:
            for tensor in proto.graph.initializer:
                file.seek(-(-file.tell() // 4096) * 4096 + self.misaligned)
                offset, data = file.tell(), tensor.raw_data
                file.write(data)
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                place = {"location": "weights", "offset": offset, "length": len(data)}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
