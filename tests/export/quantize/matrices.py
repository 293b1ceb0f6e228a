"""Matrices of the embedded example, and hessians of inputs that depend on each other."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import QuantizedRows
from edgewright.export.quantize.output_error import relative_error
from edgewright.model.loading import open_model

QUERY = "layers.1.mixer.query.weight"
DOWN = "layers.1.feed_forward.down.weight"


@cache
def example_matrix(name: str = DOWN) -> Tensor:
    return open_model("examples/llama").weights[name].read().float()


@cache
def hessian(columns: int, samples: int = 2000, seed: int = 0) -> Tensor:
    """Of inputs with a few strong directions, uneven columns and a mean that is not 0."""
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=rng) / columns**0.5
    mix *= torch.linspace(2, 0.05, columns)
    mix *= torch.exp(0.7 * torch.randn(columns, generator=rng))[:, None]
    x = torch.randn(samples, columns, generator=rng) @ mix.T
    x += 0.3 * torch.randn(columns, generator=rng)
    return (x.T @ x).double()


def error_of(rows: QuantizedRows, weight: Tensor, moments: Tensor | None = None) -> float:
    rows.check()
    return relative_error(weight, torch.from_numpy(rows.dequantised()), moments)


def bits_of(rows: QuantizedRows) -> bytes:
    """Every field, to compare."""
    parts: list[object] = [rows.bits, rows.shift, rows.half, rows.codes.tobytes()]
    for field in (rows.row_scale, rows.scale_codes, rows.block_scale, rows.zeros):
        parts.append(None if field is None else field.tobytes())
    if rows.outliers is not None:
        listed = rows.outliers
        parts += [listed.rows.tobytes(), listed.columns.tobytes(), listed.values.tobytes()]
    return repr(parts).encode()
