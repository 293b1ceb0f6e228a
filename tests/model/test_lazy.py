"""Lazy expressions against the torch operations they stand for, whole, in rows and in pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from edgewright.artifacts.errors import CheckpointError
from edgewright.model import lazy
from edgewright.model.lazy import (
    TORCH_DTYPES,
    LazyTensor,
    concat,
    constant,
    plus_one,
    reshape,
    rows,
    stack,
    strided_rows,
    transpose_last_two,
    widen,
)

Case = tuple[LazyTensor, torch.Tensor]


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def case_rows() -> Case:
    t = tensor(11, 5)
    return rows(constant(t), 3, 9), t[3:9]


def case_rows_of_vector() -> Case:
    t = tensor(11, dtype=torch.bfloat16)
    return rows(constant(t), 4, 11), t[4:11]


def case_strided_middle() -> Case:
    t = tensor(3, 8, 5, dtype=torch.bfloat16)
    return strided_rows(constant(t), 1, 2, dim=-2), t[:, 1::2]


def case_strided_last() -> Case:
    t = tensor(3, 8)
    return strided_rows(constant(t), 0, 2, dim=1), t[:, ::2]


def case_strided_first() -> Case:
    t = tensor(9, 4)
    return strided_rows(constant(t), 2, 3, dim=0), t[2::3]


def case_stack() -> Case:
    parts = [tensor(3, 4, dtype=torch.float16) + i for i in range(5)]
    return stack([constant(p) for p in parts]), torch.stack(parts)


def case_concat() -> Case:
    parts = [tensor(n, 4) for n in (3, 1, 6)]
    return concat([constant(p) for p in parts]), torch.cat(parts)


def case_concat_of_mixed_dtypes() -> Case:
    parts = [tensor(3, 4), tensor(2, 4, dtype=torch.bfloat16)]
    return concat([constant(p) for p in parts]), torch.cat([p.float() for p in parts])


def case_transpose() -> Case:
    t = tensor(3, 4, 7, dtype=torch.bfloat16)
    return transpose_last_two(constant(t)), t.transpose(1, 2)


def case_transpose_matrix() -> Case:
    t = tensor(6, 5)
    return transpose_last_two(constant(t)), t.T


def case_reshape() -> Case:
    t = tensor(6, 5)
    return reshape(constant(t), (3, 2, 5)), t.reshape(3, 2, 5)


def case_widen() -> Case:
    t = tensor(6, 5, dtype=torch.bfloat16)
    return widen(constant(t)), t.float()


def case_plus_one() -> Case:
    t = tensor(7, dtype=torch.bfloat16)
    return plus_one(constant(t)), t.float() + 1


def case_scalar() -> Case:
    return constant(torch.tensor(2.5)), torch.tensor(2.5)


def case_empty() -> Case:
    return transpose_last_two(constant(torch.zeros(0, 3, 4))), torch.zeros(0, 4, 3)


def case_strided_empty() -> Case:
    return strided_rows(constant(torch.zeros(3, 4, 0)), 0, 2, dim=1), torch.zeros(3, 2, 0)


def case_gpt_oss_gate() -> Case:
    """Saved [expert, in, 2 x out] with gate and up interleaved, wanted [expert, out, in]."""
    t = tensor(3, 5, 8, dtype=torch.bfloat16)
    gate = strided_rows(transpose_last_two(constant(t)), 0, 2, dim=-2)
    return gate, t.transpose(1, 2)[:, ::2]


def case_stack_of_rows() -> Case:
    t = tensor(8, 3)
    return stack([rows(constant(t), 2 * i, 2 * i + 2) for i in range(4)]), t.reshape(4, 2, 3)


CASES = [value for name, value in list(globals().items()) if name.startswith("case_")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_expression_equals_torch(case: Callable[[], Case]) -> None:
    found, expected = case()
    expected = expected.contiguous()
    assert found.shape == tuple(expected.shape)
    assert TORCH_DTYPES[found.dtype] == expected.dtype
    assert found.nbytes == expected.numel() * expected.element_size()
    assert torch.equal(found.read(), expected)
    for start in range(found.numel + 1):
        for stop in range(start, found.numel + 1):
            flat = found.read_flat(start, stop)
            assert torch.equal(flat, expected.reshape(-1)[start:stop])
            assert flat.dtype == expected.dtype


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("limit", [1, 7, 24, 1 << 20])
def test_pieces_are_the_bytes_in_order(case: Callable[[], Case], limit: int) -> None:
    found, expected = case()
    pieces = [bytes(piece) for piece in found.pieces(limit)]
    assert b"".join(pieces) == bytes(expected.contiguous().reshape(-1).view(torch.uint8).numpy())
    assert all(len(piece) <= max(limit, expected.element_size()) for piece in pieces)


def test_gathering_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources larger than one band, at every place a band can end."""
    t = tensor(3, 7, 8)
    for band in range(1, 7 * 8 * 4 * 2, 24):
        monkeypatch.setattr(lazy, "_BAND_BYTES", band)
        assert torch.equal(transpose_last_two(constant(t)).read(), t.transpose(1, 2))
        assert torch.equal(strided_rows(constant(t), 1, 4, dim=-1).read(), t[..., 1::4])
        assert torch.equal(strided_rows(constant(t), 0, 7, dim=-2).read(), t[:, ::7])


def test_rows_are_read_alone() -> None:
    t = tensor(9, 2, 3)
    assert torch.equal(constant(t).read_rows(2, 5), t[2:5])
    with pytest.raises(CheckpointError, match=r"rows 2\.\.10"):
        constant(t).read_rows(2, 10)


@pytest.mark.parametrize(
    "build",
    [
        lambda t: rows(t, 0, 8),
        lambda t: rows(t, -1, 2),
        lambda t: strided_rows(t, 0, 2, dim=0),
        lambda t: strided_rows(t, 0, 2, dim=2),
        lambda t: strided_rows(t, 3, 2, dim=1),
        lambda t: concat([t, constant(torch.zeros(1, 3))]),
        lambda t: stack([t, constant(torch.zeros(1, 4))]),
        lambda t: transpose_last_two(rows(reshape(t, (28,)), 0, 28)),
        lambda t: reshape(t, (5, 5)),
    ],
)
def test_wrong_shapes_name_the_tensor(build: Callable[[LazyTensor], LazyTensor]) -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.0\.weight") as caught:
        build(constant(torch.zeros(7, 4), "blocks.0.weight"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("join", [concat, stack])
def test_joining_nothing_is_an_error(join: Callable[[list[LazyTensor]], LazyTensor]) -> None:
    with pytest.raises(CheckpointError, match="there are none"):
        join([])


def test_integer_constants_are_refused() -> None:
    with pytest.raises(CheckpointError, match="int64"):
        constant(torch.arange(3), "ids")
