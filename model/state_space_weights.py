"""The weights of state-space mixers under the names that all their checkpoints share."""

from __future__ import annotations

from edgewright.model.lazy import negative_exp, transpose_last_two, widen
from edgewright.model.mixers.selective_scan import SelectiveScanSpec
from edgewright.model.mixers.state_space_dual import StateSpaceDualSpec
from edgewright.model.weights import (
    TensorSource,
    Weights,
    take_convolution,
    take_linear,
    take_norm,
)


def take_selective_scan(
    source: TensorSource, ours: str, theirs: str, spec: SelectiveScanSpec
) -> Weights:
    weights = _take_ends(source, ours, theirs, spec.bias, spec.bias)
    weights |= take_convolution(source, f"{ours}.conv", f"{theirs}.conv1d", spec.conv_bias)
    weights |= take_linear(source, f"{ours}.select", f"{theirs}.x_proj", bias=False)
    weights |= take_linear(source, f"{ours}.step", f"{theirs}.dt_proj", bias=True)
    if spec.norms == "weighted":
        for name, published in (("step", "dt"), ("write", "b"), ("read", "c")):
            norm = take_norm(source, f"{theirs}.{published}_layernorm.weight")
            weights[f"{ours}.{name}_norm.weight"] = norm
    by_channel = source.take(f"{theirs}.A_log")  # [channels, states]
    weights[f"{ours}.decay"] = negative_exp(transpose_last_two(by_channel))
    return weights | {f"{ours}.skip": widen(source.take(f"{theirs}.D"))}


def take_state_space_dual(
    source: TensorSource, ours: str, theirs: str, spec: StateSpaceDualSpec
) -> Weights:
    weights = _take_ends(source, ours, theirs, spec.input_bias, spec.output_bias)
    weights |= take_convolution(source, f"{ours}.conv", f"{theirs}.conv1d", spec.conv_bias)
    if spec.norm_eps is not None:
        weights[f"{ours}.norm.weight"] = take_norm(source, f"{theirs}.norm.weight")
    return weights | {
        f"{ours}.step_bias": widen(source.take(f"{theirs}.dt_bias")),
        f"{ours}.decay": negative_exp(source.take(f"{theirs}.A_log")),
        f"{ours}.skip": widen(source.take(f"{theirs}.D")),
    }


def _take_ends(
    source: TensorSource, ours: str, theirs: str, input_bias: bool, output_bias: bool
) -> Weights:
    return take_linear(source, f"{ours}.input", f"{theirs}.in_proj", input_bias) | take_linear(
        source, f"{ours}.output", f"{theirs}.out_proj", output_bias
    )
