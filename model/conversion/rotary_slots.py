"""Keys of several heads, frequency by frequency: which of them stay rotated and which do not.

A pair of values that rotates is a complex number, and a rotation is a product with one. Whatever
mixes the heads of one frequency among each other therefore commutes with the rotation, so that the
keys of a frequency can be turned until most of what queries read of them lies in few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """One mixed key of one frequency."""

    frequency: int
    key: Tensor  # complex [kv_heads]: how it is mixed from the heads' own
    query: Tensor  # complex [kv_heads]: what the queries of each head multiply it with
    worth: float  # how much of the scores' energy is lost where it no longer rotates
    still: complex  # the best constant in place of its rotation


def find_slots(keys: Tensor, asked: Tensor, still: Tensor, lost: Tensor) -> list[Slot]:
    """keys: complex [frequencies, kv_heads, kv_heads], second moments of the heads' keys.
    asked: [frequencies, kv_heads], the energy of the queries that read each.
    still: complex [frequencies], what stands for a rotation that is left out, and lost, the share
    of the energy that is lost by it. Most worth first."""
    slots = []
    for frequency in range(keys.shape[0]):
        scale = asked[frequency].clamp_min(asked.max() * 1e-12 + 1e-30).sqrt()
        spread = scale[:, None] * keys[frequency] * scale[None, :]
        energy, mixed = torch.linalg.eigh(spread)
        for index in range(len(energy)):
            vector = mixed[:, index]
            slots.append(
                Slot(
                    frequency,
                    vector.conj() * scale,
                    vector.conj() / scale,
                    max(0.0, float(energy[index])) * float(lost[frequency]),
                    complex(still[frequency]),
                )
            )
    return sorted(slots, key=lambda slot: -slot.worth)


def pair_columns(frequencies: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Where in a head the two values of each frequency lie."""
    steps = torch.arange(frequencies)
    return (2 * steps, 2 * steps + 1) if interleaved else (steps, steps + frequencies)


def as_complex(rows: Tensor, frequencies: int, interleaved: bool) -> Tensor:
    """[..., head_dim, n] → complex [..., frequencies, n]"""
    first, second = pair_columns(frequencies, interleaved)
    return torch.complex(rows[..., first, :], rows[..., second, :])


def query_rows(slots: Sequence[Slot], head: int, dim: int, interleaved: bool, count: int) -> Tensor:
    """Real [2 * slots, dim]: a head's query in, its values for these slots out, halves apart.

    `count`: the frequencies of a head. The score is the real part of conj(query) * key.
    """
    first, second = pair_columns(count, interleaved)
    out = torch.zeros(2, len(slots), dim, dtype=torch.float64)
    for row, slot in enumerate(slots):
        factor = slot.query[head]
        a, b = first[slot.frequency], second[slot.frequency]
        out[0, row, a], out[0, row, b] = factor.real, -factor.imag
        out[1, row, a], out[1, row, b] = factor.imag, factor.real
    return out.flatten(0, 1)


def key_rows(slots: Sequence[Slot], keys: Tensor, still: bool) -> Tensor:
    """Real [2 * slots, n], halves apart, of complex keys [kv_heads, frequencies, n]."""
    mixed = []
    for slot in slots:
        row = (slot.key[:, None] * keys[:, slot.frequency]).sum(0)
        mixed.append(row * slot.still if still else row)
    if not mixed:
        return torch.zeros(0, keys.shape[-1], dtype=torch.float64)
    found = torch.stack(mixed)
    return torch.cat((found.real, found.imag))
