"""Tiny graphs that keep the graph contract, and packages of them, made without the exporter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx import parser as onnx_parser

from edgewright.artifacts import (
    GenerationDefaults,
    Manifest,
    ModelInfo,
    Package,
    PackageWriter,
    Provenance,
    StateLayout,
    StateSpec,
    Tokenizer,
    Variant,
)

VOCAB, HEADS, HEAD_DIM, WIDTH, DECAY = 300, 2, 4, 6, 0.8
KEY = StateSpec("layers.0.key", ("batch", HEADS, "capacity", HEAD_DIM), "float32", "append")
TRACE = StateSpec("layers.1.trace", ("batch", WIDTH), "float32", "replace")

Array = NDArray[np.float32]


def toy_weights(seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    shapes = {
        "embed": (VOCAB, WIDTH),
        "to_key": (WIDTH, HEADS * HEAD_DIM),
        "to_query": (WIDTH, HEADS * HEAD_DIM),
        "head": (HEADS * HEAD_DIM + WIDTH, VOCAB),
    }
    return {
        name: random.normal(0, 1.5 if name == "embed" else 1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


# Attention over an append state (each token adds its key to an empty slot; a padded one adds
# nothing), and a decaying sum of embeddings as a replace state. Both are read, then written.
_ATTENTION = """
    past = Identity(past.layers.0.key)
    zero_heads = Constant<value_ints = [0, 0, 2, 4]>()
    keys_flat = MatMul(e, to_key)
    keys = Reshape(keys_flat, zero_heads)
    query_flat = MatMul(e, to_query)
    query_rows = Reshape(query_flat, zero_heads)
    query = Transpose<perm = [0, 2, 1, 3]>(query_rows)

    past_shape = Shape(past.layers.0.key)
    capacity = Slice(past_shape, two, three)
    capacity0 = Squeeze(capacity)
    last_slot = Sub(capacity, one)
    slot = Min(position, last_slot)
    batch0 = Squeeze(batch)
    row_range = Range(i0, batch0, i1)
    rows = Unsqueeze(row_range, one_two_three)
    heads_const = Constant<value_ints = [0, 1]>()
    heads = Unsqueeze(heads_const, zero_one_three)
    slots = Unsqueeze(slot, two_three)
    hdim = Constant<value_ints = [2]>()
    one_v = Constant<value_ints = [1]>()
    index_shape = Concat<axis = 0>(batch, seq, hdim, one_v)
    rows_x = Expand(rows, index_shape)
    heads_x = Expand(heads, index_shape)
    slots_x = Expand(slots, index_shape)
    index = Concat<axis = 3>(rows_x, heads_x, slots_x)
    real_f = Cast<to = 1>(real)
    real_x = Unsqueeze(real_f, two_three)
    update = Mul(keys, real_x)
    present.layers.0.key = ScatterND<reduction = "add">(past, index, update)

    key_t = Transpose<perm = [0, 1, 3, 2]>(present.layers.0.key)
    scores = MatMul(query, key_t)
    slot_range = Range(i0, capacity0, i1)
    position_x = Unsqueeze(position, two)
    seen = LessOrEqual(slot_range, position_x)
    seen_x = Unsqueeze(seen, one)
    never = Constant<value_float = -1e30>()
    masked = Where(seen_x, scores, never)
    share = Softmax<axis = -1>(masked)
    mixed = MatMul(share, present.layers.0.key)
    mixed_t = Transpose<perm = [0, 2, 1, 3]>(mixed)
    flat_shape = Constant<value_ints = [0, 0, 8]>()
    attended = Reshape(mixed_t, flat_shape)
"""
_TRACE = """
    trace_past = Identity(past.layers.1.trace)
    decay = Constant<value_float = 0.8>()
    offset_f = Cast<to = 1>(offset)
    length_x = Unsqueeze(length_f, one)
    length_f1 = Unsqueeze(length_f, one)
    from_col = Unsqueeze(offset_f, one)
    lag = Sub(from_col, offset_f)
    zero_f = Constant<value_float = 0.0>()
    lag_pos = Max(lag, zero_f)
    power = Pow(decay, lag_pos)
    is_past = GreaterOrEqual(lag, zero_f)
    weight = Where(is_past, power, zero_f)
    summed = MatMul(weight, e)
    one_f = Constant<value_float = 1.0>()
    steps = Add(offset_f, one_f)
    fade = Pow(decay, steps)
    fade_x = Unsqueeze(fade, zero_two)
    old = Unsqueeze(trace_past, one)
    faded = Mul(fade_x, old)
    traced = Add(summed, faded)

    last = Sub(length, i1)
    last_real = Max(last, i0)
    last_x = Unsqueeze(last_real, one)
    final_x = GatherND<batch_dims = 1>(traced, last_x)
    has_any = Greater(length, i0)
    has_x = Unsqueeze(has_any, one)
    present.layers.1.trace = Where(has_x, final_x, trace_past)
"""
_COMMON = """
    i0 = Constant<value_int = 0>()
    i1 = Constant<value_int = 1>()
    one = Constant<value_ints = [1]>()
    two = Constant<value_ints = [2]>()
    three = Constant<value_ints = [3]>()
    zero_two = Constant<value_ints = [0, 2]>()
    two_three = Constant<value_ints = [2, 3]>()
    one_two_three = Constant<value_ints = [1, 2, 3]>()
    zero_one_three = Constant<value_ints = [0, 1, 3]>()
    e = Gather(embed, input_ids)
    ids_shape = Shape(input_ids)
    zero = Constant<value_ints = [0]>()
    batch = Slice(ids_shape, zero, one)
    seq = Slice(ids_shape, one, two)
    seq0 = Squeeze(seq)
    offset = Range(i0, seq0, i1)
    start_x = Unsqueeze(start, one)
    position = Add(start_x, offset)
    length_i = Unsqueeze(length, one)
    real = Less(offset, length_i)
    length_f = Cast<to = 1>(length)
"""
_HEAD = """
    hidden = Concat<axis = 2>(attended, traced)
    index_x = Unsqueeze(logit_index, two)
    wanted = GatherND<batch_dims = 1>(hidden, index_x)
    logits = MatMul(wanted, head)
"""
_TOKEN_INPUTS = (
    "int64[batch,seq] input_ids, int64[batch] start, int64[batch] length, "
    "int64[batch,wanted] logit_index"
)


def toy_states(kinds: Sequence[str]) -> StateLayout:
    return StateLayout(tuple(s for s in (KEY, TRACE) if s.growth in kinds))


def toy_graph(kinds: Sequence[str] = ("append", "replace")) -> onnx.ModelProto:
    """The kinds left out are stood in for by zeros that keep no state."""
    layout = toy_states(kinds)
    attention = _ATTENTION if "append" in kinds else _zeros("attended", HEADS * HEAD_DIM)
    trace = _TRACE if "replace" in kinds else _zeros("traced", WIDTH)
    body = _COMMON + attention + trace + _HEAD
    if not kinds:
        body = body.replace("traced)", "e_kept)").replace(
            "hidden =", "unit = Cast<to = 1>(i1)\n    e_kept = Mul(e, unit)\n    hidden =", 1
        )
    return _parse(body, layout, VOCAB)


def _zeros(name: str, width: int) -> str:
    return f"""
    {name}_w = Constant<value_ints = [{width}]>()
    {name}_shape = Concat<axis = 0>(ids_shape, {name}_w)
    {name}_zero = Cast<to = 1>(i0)
    {name} = Expand({name}_zero, {name}_shape)
"""


def _parse(body: str, layout: StateLayout, vocab: int) -> onnx.ModelProto:
    def declared(direction: str) -> str:
        return "".join(
            f", float[{','.join(map(str, spec.shape))}] {direction}.{spec.name}" for spec in layout
        )

    dotted_names = [name for spec in (KEY, TRACE) for name in (spec.input_name, spec.output_name)]
    names = {dotted: dotted.replace(".", "_") for dotted in dotted_names}
    text = (
        '<ir_version: 10, opset_import: ["" : 21]>\n'
        f"toy ({_TOKEN_INPUTS}{declared('past')}) => "
        f"(float[batch,wanted,{vocab}] logits{declared('present')}) {{{body}}}"
    )
    for dotted, plain in names.items():  # the text format has no dots in names
        text = text.replace(dotted, plain)
    model = onnx_parser.parse_model(text)
    _rename(model.graph, {plain: dotted for dotted, plain in names.items()})
    return model


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = names.get(name, name)


def toy_reference(ids: Sequence[int], weights: dict[str, Array]) -> Array:
    """The same model over a whole prompt at once, in double precision."""
    e = weights["embed"][list(ids)].astype(np.float64)
    count = len(ids)
    keys = (e @ weights["to_key"]).reshape(count, HEADS, HEAD_DIM).transpose(1, 0, 2)
    query = (e @ weights["to_query"]).reshape(count, HEADS, HEAD_DIM).transpose(1, 0, 2)
    scores = query @ keys.transpose(0, 2, 1)
    scores[:, ~np.tri(count, dtype=bool)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    attended = (share @ keys).transpose(1, 0, 2).reshape(count, -1)
    traced, held = np.zeros_like(e), np.zeros(WIDTH)
    for step, row in enumerate(e):
        held = DECAY * held + row
        traced[step] = held
    logits = np.concatenate([attended, traced], axis=1) @ weights["head"]
    return logits.astype(np.float32)


def chain_graph(successor: Sequence[int]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A graph without states that always follows token t with successor[t]."""
    size = len(successor)
    table = np.zeros((size, size), dtype=np.float32)
    table[np.arange(size), list(successor)] = 20
    body = """
        ids_x = Identity(input_ids)
        picked = GatherElements<axis = 1>(ids_x, logit_index)
        rows = Gather(embed, picked)
        start_f = Cast<to = 1>(start)
        length_f = Cast<to = 1>(length)
        sum = Add(start_f, length_f)
        none = Sub(sum, sum)
        axes = Constant<value_ints = [1, 2]>()
        none_x = Unsqueeze(none, axes)
        logits = Add(rows, none_x)
    """
    return _parse(body, StateLayout(()), size), {"embed": table}


def write_package(
    out: Path,
    graph: onnx.ModelProto,
    weights: dict[str, Array],
    *,
    states: StateLayout,
    vocab: int = VOCAB,
    max_context: int = 512,
    tokenizer: dict[str, bytes] | None = None,
    special_tokens: dict[str, str] | None = None,
    eos: tuple[int, ...] = (),
    libraries: dict[str, bytes] | None = None,
) -> Package:
    """`tokenizer` maps file names; those that end in .jinja are chat templates."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    with PackageWriter(out) as writer:
        blobs = []
        used = {name for node in graph.graph.node for name in node.input}
        for name, array in weights.items():
            if name in used:
                blob = writer.add_blob([array.tobytes()])
                blobs.append(blob.path)
                graph.graph.initializer.append(_external(name, array, blob.path))
        writer.add_bytes("variants/cpu/model.onnx", graph.SerializeToString())
        paths = {}
        for target, data in (libraries or {}).items():
            paths[target] = f"lib/{target}/libops.so"
            writer.add_bytes(paths[target], data)
        for name, data in (tokenizer or {}).items():
            writer.add_bytes(f"tokenizer/{name}", data)
        variant = Variant(
            name="cpu",
            provider="cpu",
            graphs={"step": "variants/cpu/model.onnx"},
            opset=21,
            ir_version=10,
            onnxruntime_min="1.20",
            libraries=paths,
            weights=tuple(dict.fromkeys(blobs)),
            states=states,
            bits_per_weight=32.0,
            weight_dtypes=("float32",),
            compute_dtype="float32",
        )
        return writer.finish(
            Manifest(
                model=_model_info(vocab, max_context),
                generation=GenerationDefaults(eos_token_ids=eos),
                tokenizer=None if tokenizer is None else _tokenizer(tokenizer, special_tokens),
                variants=(variant,),
                provenance=Provenance("toy", "0" * 64, {"edgewright": "0.1.0"}, {}),
            )
        )


def _model_info(vocab: int, max_context: int) -> ModelInfo:
    return ModelInfo(
        architecture="toy",
        parameters=1,
        bits_per_weight=32.0,
        weight_dtypes=("float32",),
        vocab_size=vocab,
        layers=2,
        hidden_size=WIDTH,
        max_context=max_context,
    )


def _tokenizer(files: dict[str, bytes], special: dict[str, str] | None) -> Tokenizer:
    paths = {name: f"tokenizer/{name}" for name in files}
    templates = {
        "default" if name == "chat_template.jinja" else name.removesuffix(".jinja"): path
        for name, path in paths.items()
        if name.endswith(".jinja")
    }
    return Tokenizer(
        definition="tokenizer/tokenizer.json",
        files=tuple(paths.values()),
        chat_templates=templates,
        special_tokens=special or {},
    )


def _external(name: str, array: Array, location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(array.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def write_toy(
    out: Path, kinds: Sequence[str] = ("append", "replace"), seed: int = 0, max_context: int = 512
) -> Package:
    return write_package(
        out, toy_graph(kinds), toy_weights(seed), states=toy_states(kinds), max_context=max_context
    )
