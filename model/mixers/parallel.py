"""Mixers side by side: [batch, seq, hidden] → the sum of what each makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from edgewright.artifacts.states import StateSpec
from edgewright.model.call import Call
from edgewright.model.config import CacheDtype, MixerSpec
from edgewright.model.linear import scaled
from edgewright.model.mixer import Mixer
from edgewright.model.rope import RopeSpec


@dataclass(frozen=True)
class Branch:
    mixer: MixerSpec
    input_scale: float = 1.0
    output_scale: float = 1.0


@dataclass(frozen=True)
class ParallelSpec:
    branches: tuple[Branch, ...]

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        return tuple(rope for branch in self.branches for rope in branch.mixer.ropes)

    def with_cache(self, dtype: CacheDtype) -> ParallelSpec:
        branches = (
            replace(branch, mixer=branch.mixer.with_cache(dtype)) for branch in self.branches
        )
        return ParallelSpec(tuple(branches))

    def build(self, hidden_size: int) -> Parallel:
        return Parallel(hidden_size, self)


class Parallel(Mixer):
    def __init__(self, hidden_size: int, spec: ParallelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.branches = nn.ModuleList(branch.mixer.build(hidden_size) for branch in spec.branches)

    def states(self, prefix: str) -> tuple[StateSpec, ...]:
        return tuple(
            state
            for index, branch in enumerate(self.branches)
            for state in cast(Mixer, branch).states(f"{prefix}.{index}")
        )

    def forward(self, x: Tensor, call: Call, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        total: Tensor | None = None
        after: list[Tensor] = []
        for spec, branch in zip(self.spec.branches, self.branches, strict=True):
            taken = states[len(after) : len(after) + len(cast(Mixer, branch).states(""))]
            mixed, new = branch(scaled(x, spec.input_scale), call, taken)
            after += new
            mixed = scaled(mixed, spec.output_scale)
            total = mixed if total is None else total + mixed
        assert total is not None, "a mixer has at least one branch"
        return total, after
