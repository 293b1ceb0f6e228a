"""Report: what validation measured, for people, for scripts and for the package's evidence."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from edgewright.export.validate.metrics import Difference


@dataclass(frozen=True)
class LogitCheck:
    """One prompt run one way; `schedule` names how its tokens were fed."""

    prompt_tokens: int
    schedule: str
    difference: Difference
    passed: bool


@dataclass(frozen=True)
class GreedyCheck:
    """`first_difference` is None where every token is the reference's."""

    prompt_tokens: int
    new_tokens: int
    first_difference: int | None

    @property
    def passed(self) -> bool:
        return self.first_difference is None


@dataclass(frozen=True)
class Culprit:
    """The first value, in the order of the graph, that is not what PyTorch computes."""

    layer: str
    op: str
    node: str
    weights: tuple[str, ...]
    schedule: str
    error: float
    made_with: tuple[str, ...] = ()  # what PyTorch has no value for, between this and its inputs

    def describe(self) -> str:
        reads = f", which reads {', '.join(self.weights)}" if self.weights else ""
        if self.made_with:
            reads += f", made with {', '.join(self.made_with)}"
        return (
            f"first difference in {self.layer or 'the model'}: {self.op} (node {self.node}{reads}),"
            f" error {self.error:.3g}, fed {self.schedule}"
        )


@dataclass(frozen=True)
class LayerCheck:
    layer: str
    ops: int
    worst_op: str
    error: float


@dataclass(frozen=True)
class Fidelity:
    """What quantising has changed: the package beside the checkpoint's own values. No verdict."""

    reference: str
    positions: int
    kl: float  # mean, in nats
    top1: float


@dataclass(frozen=True)
class Report:
    package: str
    variant: str
    kernels: str
    reference: str
    tolerance: float
    logits: tuple[LogitCheck, ...]
    greedy: tuple[GreedyCheck, ...]
    layers: tuple[LayerCheck, ...] = ()
    culprit: Culprit | None = None
    fidelity: Fidelity | None = None  # of packed weights

    @property
    def passed(self) -> bool:
        right = all(check.passed for check in self.logits)
        # Packed weights are proved op by op.
        right = right and (self.fidelity is None or self.culprit is None)
        return right and all(check.passed for check in self.greedy)

    @property
    def worst(self) -> LogitCheck:
        return max(self.logits, key=lambda check: check.difference.error)

    def to_json(self) -> str:
        values = {"passed": self.passed, "max_error": self.worst.difference.error, **asdict(self)}
        for shown, check in zip(values["greedy"], self.greedy, strict=True):
            shown["passed"] = check.passed
        return json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"

    def render(self) -> str:
        lines = [
            f"{self.package}, variant {self.variant}, {self.kernels} kernels",
            f"against {self.reference}, tolerance {self.tolerance:g}"
            " (largest difference / max(1, std of the logits))",
            "",
            f"  {'prompt':>6}  {'fed':<16}{'error':>10}{'max':>10}{'mean':>10}{'KL':>10}  top-1",
        ]
        for check in self.logits:
            d = check.difference
            lines.append(
                f"  {check.prompt_tokens:>6}  {check.schedule:<16}{d.error:>10.2e}"
                f"{d.max_abs:>10.2e}{d.mean_abs:>10.2e}{d.kl:>10.2e}  {d.top1:6.1%}"
                f"{'' if check.passed else '  FAILED'}"
            )
        lines.append("")
        for greedy in self.greedy:
            verdict = (
                "equal"
                if greedy.passed
                else f"FAILED: token {greedy.first_difference} is not the reference's"
            )
            lines.append(
                f"  greedy: {greedy.new_tokens} tokens after {greedy.prompt_tokens}: {verdict}"
            )
        if self.fidelity is not None:
            told = self.fidelity
            lines += [
                "",
                f"  beside {told.reference} in full precision, which proves nothing but the cost:",
                f"  top-1 {told.top1:.1%}, KL {told.kl:.2e} nats, {told.positions} positions of"
                " random tokens",
            ]
        if self.layers:
            lines += ["", "  layer by layer (worst op of each):"]
            lines += [
                f"  {check.layer or 'model':<12} {check.ops:>4} ops  {check.error:>9.2e}"
                f"  {check.worst_op}"
                for check in self.layers
            ]
        if self.culprit is not None:
            lines += ["", self.culprit.describe()]
        lines += ["", "passed" if self.passed else "FAILED"]
        return "\n".join(lines)


def _finite(value: object) -> object:
    """JSON has no infinity and no NaN: null stands for an error that is no number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
