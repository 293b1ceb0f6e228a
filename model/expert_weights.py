"""The weights of a layer's routed experts, from one tensor per expert or from fused ones."""

from __future__ import annotations

from collections.abc import Mapping

from edgewright.model.config import MoeSpec
from edgewright.model.lazy import LazyTensor, reshape, stack, strided_rows, widen
from edgewright.model.weights import TensorSource, Weights, take_linear, take_mlp

USUAL_PARTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def take_experts(
    source: TensorSource,
    ours: str,
    theirs: str,
    spec: MoeSpec,
    parts: Mapping[str, str] = USUAL_PARTS,
    shared: str = "shared_experts",
    router: str = "gate",
) -> Weights:
    """`parts`: our gate, up and down → what the tensors of one expert are called. `shared`: the
    expert that every token passes."""
    weights = take_linear(source, f"{ours}.router", f"{theirs}.{router}", spec.router_bias)
    if spec.correction:
        correction = source.take(f"{theirs}.gate.e_score_correction_bias")
        weights[f"{ours}.correction"] = widen(correction)
    if spec.shared is not None:
        weights |= take_mlp(source, f"{ours}.shared", f"{theirs}.{shared}", spec.shared)
    if spec.shared_gate:
        weights |= take_linear(source, f"{ours}.shared_gate", f"{theirs}.{shared}_gate", False)
    fused = f"{theirs}.experts.gate_up_proj"
    if fused in source:
        found = fused_experts(source.take(fused), source.take(f"{theirs}.experts.down_proj"))
    else:
        found = {
            part: _take_part(source, f"{theirs}.experts", name, spec.experts)
            for part, name in parts.items()
        }
    return weights | one_dtype({f"{ours}.{part}": tensor for part, tensor in found.items()})


def _take_part(source: TensorSource, theirs: str, name: str, experts: int) -> LazyTensor:
    if f"{theirs}.{name}" in source:  # as transformers holds experts without gates in memory
        return source.take(f"{theirs}.{name}")
    return stack([source.take(f"{theirs}.{expert}.{name}.weight") for expert in range(experts)])


def fused_experts(gate_up: LazyTensor, down: LazyTensor) -> Weights:
    """As transformers holds them in memory: [experts, gate then up, hidden]."""
    experts, both, hidden = gate_up.shape if len(gate_up.shape) == 3 else (0, 0, 0)
    halves = reshape(gate_up, (experts * 2, both // 2, hidden))
    return {
        "gate": strided_rows(halves, 0, 2, dim=0),
        "up": strided_rows(halves, 1, 2, dim=0),
        "down": down,
    }


def one_dtype(weights: Mapping[str, LazyTensor]) -> Weights:
    """RoutedExperts takes weights of one dtype; float32 holds every other exactly."""
    if len({tensor.dtype for tensor in weights.values()}) == 1:
        return dict(weights)
    return {name: widen(tensor) for name, tensor in weights.items()}
