"""Codes with zero points and scales, packed as GPTQ's and AWQ's own loops pack them."""

from __future__ import annotations

import torch

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


class Matrix:
    """Random codes with their zero points and scales, and the matrix that they stand for."""

    def __init__(
        self, n: int, k: int, size: int, bits: int = 4, dtype: torch.dtype = torch.float16
    ) -> None:
        draw = torch.Generator().manual_seed(n * k + size)
        self.bits, groups = bits, -(-k // size)
        self.codes = torch.randint(0, 1 << bits, (n, k), generator=draw)
        self.zeros = torch.randint(1, 1 << bits, (n, groups), generator=draw)
        scales = torch.rand(n, groups, generator=draw) * 0.1 + 1e-3
        self.scales = scales.half().to(dtype)  # as a rule those in float32 were float16 before
        self.group_of = torch.arange(k) // size

    @property
    def values(self) -> torch.Tensor:
        whole = (self.codes - self.zeros[:, self.group_of]).float()
        return whole * self.scales.float()[:, self.group_of]


def packed(codes: torch.Tensor, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """[R, C] as int32 [R, C * bits / 32], one shift at a time, as the tools' own loops do it."""
    each = 32 // bits
    order = places or tuple(range(each))
    out = torch.zeros(len(codes), -(-codes.shape[1] // each), dtype=torch.int64)
    for column in range(out.shape[1]):
        for i in range(each):
            at = column * each + order[i]
            if at < codes.shape[1]:
                out[:, column] |= codes[:, at] << (bits * i)
    return torch.where(out >= 1 << 31, out - (1 << 32), out).to(torch.int32)


def gptq(matrix: Matrix, less: int = 1, stem: str = "x") -> dict[str, torch.Tensor]:
    return {
        f"{stem}.qweight": packed(matrix.codes, matrix.bits).T,
        f"{stem}.qzeros": packed(matrix.zeros.T - less, matrix.bits),
        f"{stem}.scales": matrix.scales.T,
        f"{stem}.g_idx": matrix.group_of.int(),
    }


def awq(matrix: Matrix, stem: str = "x") -> dict[str, torch.Tensor]:
    return {
        f"{stem}.qweight": packed(matrix.codes.T, 4, AWQ_COLUMNS),
        f"{stem}.qzeros": packed(matrix.zeros.T, 4, AWQ_COLUMNS),
        f"{stem}.scales": matrix.scales.T,
    }
