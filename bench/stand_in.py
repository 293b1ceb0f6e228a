"""A graph shaped like a 100M decoder goes into a package, without a checkpoint or an export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgewright.artifacts import (
    Blob,
    GenerationDefaults,
    Manifest,
    ModelInfo,
    PackageWriter,
    Provenance,
    StateLayout,
    StateSpec,
    Variant,
)

LAYERS, HIDDEN, INNER, VOCAB, HEADS, CONTEXT = 12, 768, 3072, 32768, 12, 4096
OPSET, IR_VERSION = 24, 11
SHAPES: dict[str, tuple[int, int]] = {
    "embed": (VOCAB, HIDDEN),
    "head": (HIDDEN, VOCAB),
    **{f"up.{n}": (HIDDEN, INNER) for n in range(LAYERS)},
    **{f"down.{n}": (INNER, HIDDEN) for n in range(LAYERS)},
}
_STATE_SHAPE = ("batch", HEADS, "capacity", HIDDEN // HEADS)
_TOKEN_INPUTS = {
    "input_ids": ["batch", "seq"],
    "start": ["batch"],
    "length": ["batch"],
    "logit_index": ["batch", "wanted"],
}


def write_stand_in(out: Path) -> None:
    """Each layer has two matrices, and a key and a value that every token appends."""
    states = StateLayout(
        tuple(
            StateSpec(f"layers.{n}.{part}", _STATE_SHAPE, "float32", "append")
            for n in range(LAYERS)
            for part in ("key", "value")
        )
    )
    with PackageWriter(out) as writer:
        blobs = {name: writer.add_blob(_rows(name)) for name in SHAPES}
        writer.add_bytes("model.onnx", _model(states, blobs).SerializeToString())
        writer.finish(_manifest(states, tuple(blob.path for blob in blobs.values())))


def _rows(name: str) -> Iterator[bytes]:
    height, width = SHAPES[name]
    random = np.random.default_rng(list(SHAPES).index(name))
    for _ in range(height):
        yield (random.standard_normal(width, dtype=np.float32) / np.float32(height**0.5)).tobytes()


def _model(states: StateLayout, blobs: dict[str, Blob]) -> onnx.ModelProto:
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Constant", [], ["split"], value_ints=[0, 0, HEADS, HIDDEN // HEADS]),
        node("Constant", [], ["last_axis"], value_ints=[-1]),
        node("Gather", ["embed", "input_ids"], ["hidden.0"]),
        *(part for n in range(LAYERS) for part in _layer(n)),
        node("Unsqueeze", ["logit_index", "last_axis"], ["wanted"]),
        node("GatherND", [f"hidden.{LAYERS}", "wanted"], ["picked"], batch_dims=1),
        node("MatMul", ["picked", "head"], ["logits"]),
    ]
    inputs = [value(name, TensorProto.INT64, shape) for name, shape in _TOKEN_INPUTS.items()]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "wanted", VOCAB])]
    for spec in states:
        inputs.append(value(spec.input_name, TensorProto.FLOAT, spec.shape))
        outputs.append(value(spec.output_name, TensorProto.FLOAT, spec.shape))
    weights = [_external(name, blob) for name, blob in blobs.items()]
    graph = helper.make_graph(nodes, "stand_in", inputs, outputs, weights)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def _layer(n: int) -> list[onnx.NodeProto]:
    node, hidden = helper.make_node, f"hidden.{n}"
    return [
        node("Reshape", [hidden, "split"], [f"rows.{n}"]),
        node("Transpose", [f"rows.{n}"], [f"heads.{n}"], perm=[0, 2, 1, 3]),
        *(
            node("TensorScatter", [f"past.{name}", f"heads.{n}", "start"], [f"present.{name}"])
            for name in (f"layers.{n}.key", f"layers.{n}.value")
        ),
        node("MatMul", [hidden, f"up.{n}"], [f"wide.{n}"]),
        node("Relu", [f"wide.{n}"], [f"active.{n}"]),
        node("MatMul", [f"active.{n}", f"down.{n}"], [f"narrow.{n}"]),
        node("Add", [hidden, f"narrow.{n}"], [f"hidden.{n + 1}"]),
    ]


def _external(name: str, blob: Blob) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=SHAPES[name])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", blob.path), ("offset", "0"), ("length", str(blob.size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _manifest(states: StateLayout, weights: tuple[str, ...]) -> Manifest:
    return Manifest(
        model=ModelInfo(
            architecture="stand-in",
            parameters=sum(height * width for height, width in SHAPES.values()),
            bits_per_weight=32.0,
            weight_dtypes=("float32",),
            vocab_size=VOCAB,
            layers=LAYERS,
            hidden_size=HIDDEN,
            max_context=CONTEXT,
        ),
        generation=GenerationDefaults(),
        tokenizer=None,
        variants=(
            Variant(
                name="cpu",
                provider="cpu",
                graphs={"step": "model.onnx"},
                opset=OPSET,
                ir_version=IR_VERSION,
                onnxruntime_min="1.31",
                libraries={},
                weights=weights,
                states=states,
                bits_per_weight=32.0,
                weight_dtypes=("float32",),
                compute_dtype="float32",
            ),
        ),
        provenance=Provenance("stand-in", "0" * 64, {"edgewright": "0"}, {}),
    )
