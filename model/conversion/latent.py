"""One layer's grouped-query attention goes in; latent attention of a given rank comes out.

The keys' rotating pairs are mixed across heads, frequency by frequency, and those whose rotation
matters most stay rotated in one key for all heads (`rotary_slots.py`). What is left of the keys,
with the best constant in place of its rotation, and all values are together made of one narrow
vector: the low-rank factors that lose least of the scores and of the layer's output, measured on
text. Without measurements every input counts the same, which is a plain singular value
decomposition of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgewright.model.conversion.moments import Moments
from edgewright.model.conversion.rotary_slots import (
    Slot,
    as_complex,
    find_slots,
    key_rows,
    query_rows,
)
from edgewright.model.mixers.attention import AttentionSpec


@dataclass(frozen=True)
class WholeAttention:
    """A layer's projections in float64, with a last column for the bias."""

    spec: AttentionSpec
    query: Tensor  # [heads, head_dim, hidden + 1]
    key: Tensor  # [kv_heads, head_dim, hidden + 1]
    value: Tensor  # [kv_heads, head_dim, hidden + 1]
    output: Tensor  # [hidden, heads, head_dim]

    @property
    def group(self) -> int:
        return self.spec.heads // self.spec.kv_heads


@dataclass(frozen=True)
class LatentProjections:
    query: Tensor  # [heads * (head_dim + rope), hidden + 1]
    latent: Tensor  # [rank + rope, hidden + 1]
    up: Tensor  # [heads * (head_dim + head_dim), rank]
    frequencies: tuple[float, ...]


def latent_attention(
    whole: WholeAttention, moments: Moments | None, rank: int, rope_dim: int
) -> LatentProjections:
    spec, group = whole.spec, whole.group
    inputs = _inputs(whole, moments)
    importance = _importance(whole, inputs, moments)  # [heads]
    slots = _slots(whole, inputs, importance, moments)
    turning = sorted(slots[: rope_dim // 2], key=lambda slot: slot.frequency)
    still = slots[rope_dim // 2 :]
    targets = _Targets(whole, inputs, importance, still, moments is not None)

    low, down = _factors(targets.rows, inputs, rank)
    keys_of_head, values_of_head = targets.split(low)
    up, queries = [], []
    for head in range(spec.heads):
        own = head // group
        up += [keys_of_head(own), values_of_head(own)]
        turn = _query_rows(whole, turning, own) * _magnitude(spec)
        queries += [whole.query[head], turn @ whole.query[head]]
    rope_key = key_rows(turning, _complex_keys(whole), still=False) * _magnitude(spec)
    frequencies = spec.rope.frequencies if spec.rope is not None else ()
    return LatentProjections(
        torch.cat(queries),
        torch.cat((down @ targets.rows, rope_key)),
        torch.cat(up),
        tuple(frequencies[slot.frequency] for slot in turning),
    )


class _Targets:
    """What the latents stand for, scaled so that an error costs the same in every row."""

    def __init__(
        self,
        whole: WholeAttention,
        inputs: Tensor,
        importance: Tensor,
        still: list[Slot],
        weighted: bool,
    ) -> None:
        self._whole, self._still = whole, still
        spec, group = whole.spec, whole.group
        rotating = _frequencies(spec)
        # Values of each head that never rotated, by how much the queries ask of them.
        plain = whole.key[:, 2 * rotating :]
        asked = _energy(whole.query[:, 2 * rotating :], inputs) * importance[:, None]
        self._plain_scale = _positive(asked.view(spec.kv_heads, group, -1).sum(1).sqrt())
        self._value_scale, self._value_unscale = _value_scales(whole, weighted)
        magnitude = _magnitude(spec) ** 2
        self._parts = [
            key_rows(still, _complex_keys(whole), still=True) * magnitude,
            (plain * self._plain_scale[..., None]).flatten(0, 1),
            (self._value_scale @ whole.value).flatten(0, 1),
        ]
        self.rows = torch.cat(self._parts)

    def split(self, low: Tensor) -> tuple[Callable[[int], Tensor], Callable[[int], Tensor]]:
        """`low` [rows, rank] → what gives a head's keys and values of a latent [dim, rank]."""
        spec = self._whole.spec
        turned, plain, values = torch.split(low, [len(part) for part in self._parts])
        plain = plain.view(spec.kv_heads, -1, low.shape[1]) / self._plain_scale[..., None]
        values = self._value_unscale @ values.view(spec.kv_heads, -1, low.shape[1])

        def keys_of(head: int) -> Tensor:
            keys: Tensor = _query_rows(self._whole, self._still, head).T @ turned
            keys[2 * _frequencies(spec) :] += plain[head]
            return keys

        return keys_of, lambda head: values[head]


def _factors(rows: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """low [rows, rank] and down [rank, rows]: low @ down @ rows is nearest to rows on the inputs.

    Each of the latents has a mean square of one, so that they share a scale where they are kept in
    few bits.
    """
    energy, directions = torch.linalg.eigh(rows @ inputs @ rows.T)
    energy, directions = energy.flip(0)[:rank], directions.flip(1)[:, :rank]
    size = energy.clamp_min(energy[0] * 1e-12 + 1e-30).sqrt()
    return directions * size, directions.T / size[:, None]


def _inputs(whole: WholeAttention, moments: Moments | None) -> Tensor:
    size = whole.query.shape[-1]
    return torch.eye(size, dtype=torch.float64) if moments is None else moments.inputs


def _importance(whole: WholeAttention, inputs: Tensor, moments: Moments | None) -> Tensor:
    """By head: what an error of one in a score does to the layer's output, squared. It moves weight
    from one value to another, so the spread of the values as the output sees them."""
    spec = whole.spec
    if moments is None:
        return torch.full((spec.heads,), spec.scale**2, dtype=torch.float64)
    mean = inputs[:, -1]
    spread = inputs - torch.outer(mean, mean)
    covariance = whole.value @ spread @ whole.value.mT  # [kv_heads, dim, dim]
    outputs = whole.output.movedim(0, -1)  # [heads, dim, hidden]
    seen = outputs @ outputs.mT
    by_head = covariance.repeat_interleave(whole.group, 0)
    return (seen * by_head.mT).sum((1, 2)).clamp_min(1e-12) * spec.scale**2


def _slots(
    whole: WholeAttention, inputs: Tensor, importance: Tensor, moments: Moments | None
) -> list[Slot]:
    spec = whole.spec
    if spec.rope is None:
        return []
    keys = _complex_keys(whole).movedim(1, 0)  # [frequencies, kv_heads, hidden + 1]
    queries = as_complex(whole.query, _frequencies(spec), spec.rope.interleaved)
    asked = _energy(queries, inputs) * importance[:, None]  # [heads, frequencies]
    asked = asked.view(spec.kv_heads, whole.group, -1).sum(1).T
    spread = keys @ inputs.to(keys.dtype) @ keys.mH
    mean, lost = _mean_turns(spec.rope.frequencies, moments)
    return find_slots(spread, asked, mean, lost)


def _mean_turns(frequencies: Sequence[float], moments: Moments | None) -> tuple[Tensor, Tensor]:
    """By frequency, the mean rotation between a query and the keys it attends to, and the share of
    a score's energy that the mean does not catch. Nothing known of distances: no rotation, and one
    frequency as bad as another."""
    turns = torch.tensor(frequencies, dtype=torch.float64)
    if moments is None:
        return torch.ones_like(turns).to(torch.complex128), torch.ones_like(turns)
    back = torch.arange(len(moments.distances), dtype=torch.float64)
    angles = -turns[:, None] * back
    mean = (torch.polar(torch.ones_like(angles), angles) * moments.distances).sum(-1)
    return mean, 1.0 - mean.abs() ** 2


def _value_scales(whole: WholeAttention, weighted: bool) -> tuple[Tensor, Tensor]:
    """By key/value head, the square root of what the output projections make of its values, and
    the inverse [kv_heads, dim, dim]."""
    spec = whole.spec
    size = spec.head_dim
    if not weighted:
        eye = torch.eye(size, dtype=torch.float64).expand(spec.kv_heads, size, size)
        return eye, eye
    outputs = whole.output.movedim(0, -1).reshape(spec.kv_heads, whole.group, size, -1)
    seen = (outputs @ outputs.mT).sum(1)
    energy, directions = torch.linalg.eigh(seen)
    root = energy.clamp_min(energy.amax() * 1e-10 + 1e-30).sqrt()[:, None, :]
    return (directions * root) @ directions.mT, (directions / root) @ directions.mT


def _energy(rows: Tensor, inputs: Tensor) -> Tensor:
    """The mean square of each row on the inputs."""
    energy = ((rows @ inputs.to(rows.dtype)) * rows.conj()).sum(-1)
    return energy.real if energy.is_complex() else energy


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(values.amax() * 1e-6 + 1e-15) if values.numel() else values


def _complex_keys(whole: WholeAttention) -> Tensor:
    """[kv_heads, frequencies, hidden + 1]"""
    rope = whole.spec.rope
    return as_complex(whole.key, _frequencies(whole.spec), rope is not None and rope.interleaved)


def _query_rows(whole: WholeAttention, slots: list[Slot], head: int) -> Tensor:
    spec = whole.spec
    interleaved = spec.rope is not None and spec.rope.interleaved
    return query_rows(slots, head, spec.head_dim, interleaved, _frequencies(spec))


def _frequencies(spec: AttentionSpec) -> int:
    return 0 if spec.rope is None else len(spec.rope.frequencies)


def _magnitude(spec: AttentionSpec) -> float:
    return 1.0 if spec.rope is None else spec.rope.magnitude
