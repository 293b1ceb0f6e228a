"""Rotary embeddings: config parameters become a RopeSpec; positions become cosines and sines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RopeSpec:
    """Frequencies for `2 * len(frequencies)` values of each head, and how they depend on length."""

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    interleaved: bool = False
    kind: Literal["fixed", "dynamic", "longrope"] = "fixed"
    # longrope: the frequencies of a context longer than `switch_length`.
    long_frequencies: tuple[float, ...] = ()
    switch_length: int = 0
    # dynamic: the base grows once the context passes `switch_length`.
    base: float = 0.0
    factor: float = 1.0

    @property
    def dim(self) -> int:
        return 2 * len(self.frequencies)


@dataclass(frozen=True)
class RopeParameters:
    """Rotation settings as published, under the names transformers 5 gives them."""

    kind: str
    theta: float
    dim: int
    max_positions: int
    original_max_positions: int
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    interleaved: bool = False
    # `dim` is less than the head, so an odd one has room to be rounded up, as in transformers.
    partial: bool = False


def build_rope(p: RopeParameters) -> RopeSpec:
    """Each published scaling becomes frequencies and a magnitude, in float32 as published code."""
    if p.dim < 1 or (p.dim % 2 and not (p.partial and p.kind == "default")):
        raise ValueError(f"{p.dim} values of each head cannot be rotated in pairs")
    exponents = torch.arange(0, p.dim, 2, dtype=torch.int64).float() / p.dim
    powers = p.theta**exponents
    plain = 1.0 / powers
    if p.kind == "default":
        return _fixed(p, plain)
    if p.kind == "linear":
        return _fixed(p, plain / _required(p.factor, "factor"))
    if p.kind == "llama3":
        return _fixed(p, _llama3(p, plain))
    if p.kind == "yarn":
        return _fixed(p, _yarn(p, powers), _yarn_magnitude(p))
    if p.kind == "dynamic":
        return _dynamic(p, plain)
    if p.kind == "longrope":
        return _longrope(p, powers)
    raise ValueError(f"unknown rotary scaling '{p.kind}'")


def _fixed(p: RopeParameters, frequencies: Tensor, magnitude: float = 1.0) -> RopeSpec:
    return RopeSpec(_floats(frequencies), magnitude, p.interleaved)


def _floats(values: Tensor) -> tuple[float, ...]:
    if not values.isfinite().all():
        raise ValueError("rope_theta and the scaling's factors give frequencies beyond float32")
    return tuple(values.tolist())


def _required(value: float | None, name: str) -> float:
    if value is None:
        raise ValueError(f"rotary scaling needs '{name}'")
    if value <= 0:
        raise ValueError(f"rotary scaling needs a '{name}' above 0, not {value}")
    return value


def _dynamic(p: RopeParameters, plain: Tensor) -> RopeSpec:
    if p.dim == 2:
        raise ValueError("dynamic rotary scaling needs more than one pair of values in a head")
    return RopeSpec(
        _floats(plain),
        interleaved=p.interleaved,
        kind="dynamic",
        switch_length=p.max_positions,
        base=p.theta,
        factor=_required(p.factor, "factor"),
    )


def _llama3(p: RopeParameters, plain: Tensor) -> Tensor:
    factor = _required(p.factor, "factor")
    low = _required(p.low_freq_factor, "low_freq_factor")
    high = _required(p.high_freq_factor, "high_freq_factor")
    if high <= low:
        raise ValueError(f"high_freq_factor {high} is not above low_freq_factor {low}")
    turns = p.original_max_positions * plain / (2 * math.pi)
    # 1 keeps a frequency that turns often within the original context, 0 divides it by the factor.
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / factor + keep * plain


def _yarn_factor(p: RopeParameters) -> float:
    if p.factor is not None:
        return _required(p.factor, "factor")
    return p.max_positions / p.original_max_positions


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_magnitude(p: RopeParameters) -> float:
    if p.attention_factor is not None:
        return p.attention_factor
    factor = _yarn_factor(p)
    if p.mscale and p.mscale_all_dim:
        return yarn_mscale(factor, p.mscale) / yarn_mscale(factor, p.mscale_all_dim)
    return yarn_mscale(factor)


def _yarn(p: RopeParameters, powers: Tensor) -> Tensor:
    def dimension(rotations: float) -> float:
        turns = p.original_max_positions / (rotations * 2 * math.pi)
        return p.dim * math.log(turns) / (2 * math.log(p.theta))

    low, high = dimension(p.beta_fast or 32.0), dimension(p.beta_slow or 1.0)
    if p.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, p.dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(p.dim // 2, dtype=torch.float32) - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)
    return (1.0 / (_yarn_factor(p) * powers)) * (1 - keep) + (1.0 / powers) * keep


def _longrope(p: RopeParameters, powers: Tensor) -> RopeSpec:
    original = p.original_max_positions
    for name, factors in (("short_factor", p.short_factor), ("long_factor", p.long_factor)):
        if len(factors) != p.dim // 2:
            raise ValueError(f"'{name}' has {len(factors)} numbers, {p.dim // 2} are required")
    factor = p.factor if p.factor is not None else p.max_positions / original
    magnitude = p.attention_factor
    if magnitude is None:
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeSpec(
        _floats(1.0 / (torch.tensor(p.short_factor, dtype=torch.float32) * powers)),
        magnitude,
        p.interleaved,
        kind="longrope",
        long_frequencies=_floats(1.0 / (torch.tensor(p.long_factor, dtype=torch.float32) * powers)),
        switch_length=original,
    )


class Rope(nn.Module):
    """Positions [batch, seq] and context lengths [batch] → cos, sin [batch, seq, dim / 2]."""

    frequencies: Tensor
    long_frequencies: Tensor
    exponents: Tensor

    def __init__(self, spec: RopeSpec) -> None:
        super().__init__()
        self.spec = spec
        # Real values even while the parameters around them are built on the meta device.
        self._hold("frequencies", spec.frequencies)
        if spec.kind == "longrope":
            self._hold("long_frequencies", spec.long_frequencies)
        if spec.kind == "dynamic":
            self._hold("exponents", tuple(i / spec.dim for i in range(0, spec.dim, 2)))

    def _hold(self, name: str, values: tuple[float, ...]) -> None:
        tensor = torch.tensor(values, dtype=torch.float32, device="cpu")
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, positions: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions.unsqueeze(-1).float() * self._frequencies(total)
        cos, sin = angles.cos(), angles.sin()
        if self.spec.magnitude != 1.0:
            cos, sin = cos * self.spec.magnitude, sin * self.spec.magnitude
        return cos, sin

    def _frequencies(self, total: Tensor) -> Tensor:
        """[dim/2], or [batch, 1, dim/2] where the frequencies follow each row's own length."""
        spec = self.spec
        if spec.kind == "fixed":
            return self.frequencies
        long_row = (total > spec.switch_length)[:, None, None]
        if spec.kind == "longrope":
            return torch.where(long_row, self.long_frequencies, self.frequencies)
        growth = spec.factor * total.float() / spec.switch_length - (spec.factor - 1)
        # Powers in float64, rounded at once: in float32 they would differ between libraries by an
        # ulp, which a position of a few hundred turns into a visible angle.
        grown = (growth.clamp(min=1.0).double() ** (spec.dim / (spec.dim - 2))).float()
        base = (spec.base * grown)[:, None, None].double()
        stretched = 1.0 / (base ** self.exponents.double()).float()
        return torch.where(long_row, stretched, self.frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, heads: int, interleaved: bool) -> Tensor:
    """x [batch, seq, heads * head_dim]: the first 2 * cos.shape[-1] values of each head turn."""
    half = cos.shape[-1]
    if torch.compiler.is_exporting():
        # One node where the formula below would be about fifteen.
        partial = 0 if x.shape[-1] == 2 * half * heads else 2 * half
        rotated: Tensor = torch.onnx.ops.rotary_embedding(
            x, cos, sin, interleaved=interleaved, num_heads=heads, rotary_embedding_dim=partial
        )
        return rotated
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    by_head = x.reshape(*x.shape[:2], heads, -1)
    turned, kept = by_head[..., : 2 * half], by_head[..., 2 * half :]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), kept), dim=-1).flatten(-2)
    first, second = turned[..., :half], turned[..., half:]
    parts = (first * cos - second * sin, second * cos + first * sin, kept)
    return torch.cat(parts, dim=-1).flatten(-2)
