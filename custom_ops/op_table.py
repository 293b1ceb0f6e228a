"""Op specs go in; ops.inc, the table that native/registry.cc registers from, comes out."""

from __future__ import annotations

from collections.abc import Iterable

from edgewright.custom_ops.spec import ELEMENT_TYPES, OpSpec


def op_table(specs: Iterable[OpSpec], byte_ops: Iterable[OpSpec]) -> str:
    """`byte_ops` are those of the specs whose kernels make products of bytes."""
    ordered = tuple(specs)
    entries = sum(len(spec.bindings()) for spec in ordered)
    rows = "".join(f"    {_row(spec)},\n" for spec in ordered)
    return (
        f"#define EDGE_OPS(X) {_calls(ordered)}\n"
        f"#define EDGE_BYTE_OPS(X) {_calls(byte_ops)}\n"
        "namespace edge {\n"
        f"constexpr size_t kOpCount = {len(ordered)};\n"
        f"constexpr size_t kEntryCount = {entries};\n"
        + "".join(_arrays(spec) for spec in ordered)
        + f"constexpr OpDescription kDescriptions[] = {{\n{rows}}};\n"
        "}\n"
    )


def _calls(specs: Iterable[OpSpec]) -> str:
    return " ".join(f"X({spec.function})" for spec in specs)


def _arrays(spec: OpSpec) -> str:
    types = [
        ELEMENT_TYPES[spec.bound(tensor, binding)]
        for binding in spec.bindings()
        for tensor in (*spec.inputs, *spec.outputs)
    ]
    text = _array(f"{spec.function}_types", types)
    if spec.in_place:
        inputs, outputs = zip(*spec.in_place_indices(), strict=True)
        text += _array(f"{spec.function}_in_place_inputs", inputs)
        text += _array(f"{spec.function}_in_place_outputs", outputs)
    return text


def _array(name: str, values: Iterable[int]) -> str:
    return f"constexpr int32_t {name}[] = {{{', '.join(map(str, values))}}};\n"


def _row(spec: OpSpec) -> str:
    name = spec.function
    pairs = f"{name}_in_place_inputs, {name}_in_place_outputs" if spec.in_place else "{}, {}"
    sizes = f"{len(spec.inputs)}, {len(spec.outputs)}, {len(spec.bindings())}"
    return f'{{"{spec.name}", {sizes}, {name}_types, {len(spec.in_place)}, {pairs}}}'
