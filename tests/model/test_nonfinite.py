"""count_nonfinite against torch.isfinite, over every 16-bit value and hand-picked 32-bit ones."""

from __future__ import annotations

import pytest
import torch

from edgewright.model.lazy import TORCH_DTYPES, Dtype, raw_bytes
from edgewright.model.nonfinite import count_nonfinite


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_each_value_alone_and_all_together(dtype: Dtype) -> None:
    special = [0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf")]
    limits = torch.finfo(TORCH_DTYPES[dtype])
    values = torch.tensor([*special, limits.max, limits.min, limits.tiny, limits.smallest_normal])
    values = torch.cat([values, -values]).to(TORCH_DTYPES[dtype])
    for value in values:
        expected = int(not torch.isfinite(value))
        assert count_nonfinite(raw_bytes(value.reshape(1)), dtype) == expected, value
    expected = int((~torch.isfinite(values)).sum())
    assert count_nonfinite(raw_bytes(values), dtype) == expected == 6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_value(dtype: Dtype) -> None:
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(TORCH_DTYPES[dtype])
    finite = torch.isfinite(values)
    assert count_nonfinite(raw_bytes(values[finite]), dtype) == 0
    assert count_nonfinite(raw_bytes(values), dtype) == int((~finite).sum())


def test_every_bit_pattern_of_a_32_bit_nan() -> None:
    patterns = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001 - (1 << 32), -1]
    values = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    for value in values:
        assert count_nonfinite(raw_bytes(value.reshape(1)), "float32") == 1


@pytest.mark.parametrize("place", [0, 65535, 65536, 199_999])
def test_one_in_many(place: int) -> None:
    values = torch.ones(200_000)
    assert count_nonfinite(raw_bytes(values), "float32") == 0
    values[place] = float("nan")
    assert count_nonfinite(raw_bytes(values), "float32") == 1


def test_nothing() -> None:
    assert count_nonfinite(b"", "float16") == 0
