"""The weights of a gated delta layer; models differ in what they call its projections."""

from __future__ import annotations

from collections.abc import Mapping

from edgewright.model.lazy import LazyTensor, concat, negative_exp, reshape, widen
from edgewright.model.mixers.gated_delta import GatedDeltaSpec
from edgewright.model.weights import TensorSource, Weights, by_tap, take_norm


def take_gated_delta(
    source: TensorSource,
    ours: str,
    theirs: str,
    spec: GatedDeltaSpec,
    projections: Mapping[str, LazyTensor],
    *,
    norm: str = "o_norm",
    output: str = "o_proj",
) -> Weights:
    """`projections`: matrices by the name of the part of our mixer that they are."""
    # Queries, keys and values pass one convolution, which is stored whole or in three.
    whole = f"{theirs}.conv1d.weight" in source
    names = ("conv1d",) if whole else ("q_conv1d", "k_conv1d", "v_conv1d")
    convolution = concat([source.take(f"{theirs}.{name}.weight") for name in names])
    rate = reshape(source.take(f"{theirs}.A_log"), (spec.value_heads,))
    return {
        **{f"{ours}.{part}.weight": matrix for part, matrix in projections.items()},
        f"{ours}.convolution.weight": by_tap(convolution),
        f"{ours}.rate": negative_exp(rate),
        f"{ours}.decay.bias": widen(source.take(f"{theirs}.dt_bias")),
        f"{ours}.norm.weight": take_norm(source, f"{theirs}.{norm}.weight"),
        f"{ours}.output.weight": source.take(f"{theirs}.{output}.weight"),
    }


def take_qkv(source: TensorSource, theirs: str) -> LazyTensor:
    """Three projections of the same input, one below the other."""
    return concat([source.take(f"{theirs}.{part}_proj.weight") for part in "qkv"])
