"""A package and its checkpoint in, a Report out; the package runs as a user would run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewright.artifacts import Package
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.manifest import Variant
from edgewright.export.validate.bisect import compare_values
from edgewright.export.validate.metrics import Difference, Logits
from edgewright.export.validate.packed import packed_parameters
from edgewright.export.validate.reference import OwnReference, Reference, open_reference
from edgewright.export.validate.report import (
    Culprit,
    Fidelity,
    GreedyCheck,
    LayerCheck,
    LogitCheck,
    Report,
)
from edgewright.model.config import CacheDtype
from edgewright.model.loading import LazyModel, Readable, open_model
from edgewright.runtime import Session

TOLERANCE = 1e-4
# A smaller cache rounds what attention reads, which is the error that was asked for.
ROUNDED_TOLERANCES: Mapping[CacheDtype, float] = {"float16": 1e-2, "int8": 0.5}
# Packed products round x to int8: where two sums of float32 are a hair apart, one value in a model
# goes to the next of 255, and what comes of it grows. Each op by itself is held to TOLERANCE.
PACKED_TOLERANCE = 0.5
_PACKED_TOKENS = 32  # that every op is compared on

PROMPT_TOKENS = (1, 17, 300)
GREEDY_TOKENS = 64
_CHUNK = 7

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Schedule:
    """A way to feed the same tokens; whatever it is, the logits must come out the same."""

    name: str
    chunks: tuple[int, ...]
    first: int  # the position from which its logits are compared
    run: Callable[[Session, list[int]], Logits]


def validate(
    package_path: str | Path,
    checkpoint_path: str | Path,
    *,
    provider: str | None = None,
    prompt_tokens: Sequence[int] = PROMPT_TOKENS,
    greedy_tokens: int = GREEDY_TOKENS,
    layers: bool = False,
    seed: int = 0,
    store: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Compare logits, top-1 and greedy tokens; where they differ, or when `layers` is asked for,
    compare every value of the graph. The report goes into the package's evidence if `store`."""
    tell = progress or (lambda *_: None)
    package = Package.open(package_path)
    session = Session.open(package_path, provider=provider)
    variant = package.manifest.variant(session.variant_name)
    if variant.compute_dtype != "float32":
        raise PackageError(
            f"variant {variant.name} computes in {variant.compute_dtype}; validate compares those"
            " that compute in float32"
        )
    cache_dtype = _cache_dtype(variant)
    model = open_model(checkpoint_path, cache_dtype=cache_dtype)
    _check_same_model(package, model)
    packed = packed_parameters(package, variant, model) if variant.static is None else {}
    tell("loading the reference", 0, 1)
    reference = _Remembered(
        OwnReference(model, "with the package's weights", packed)
        if packed
        else open_reference(Path(checkpoint_path), model)
    )
    rounding = max(ROUNDED_TOLERANCES.get(cache_dtype, 0.0), PACKED_TOLERANCE if packed else 0.0)
    tolerance, slack = rounding or TOLERANCE, 2 * rounding
    prompts = _prompts(session, prompt_tokens, seed)
    logits = tuple(_check_logits(session, model, reference, prompts, tolerance, tell))
    greedy = (_check_greedy(session, model, reference, prompts[-1], greedy_tokens, slack),)
    culprit, checks = _examine(
        package, variant, model, logits, greedy, prompts, tolerance, layers, packed
    )
    fidelity = None
    if packed:
        original = open_reference(Path(checkpoint_path), model)
        fidelity = _fidelity(session, model, original, prompts)
    report = Report(
        package=package.root.name,
        variant=variant.name,
        kernels=session.kernels,
        reference=reference.name,
        tolerance=tolerance,
        logits=logits,
        greedy=greedy,
        layers=checks,
        culprit=culprit,
        fidelity=fidelity,
    )
    if store:
        store_report(package_path, report)
    return report


def store_report(package_path: str | Path, report: Report) -> None:
    """Into the package's evidence, in place of what an earlier validation of the variant left."""
    Package.open(package_path).add_evidence(report.variant, report.to_json().encode())


class _Remembered:
    """The last prompt's logits are asked for once for each way to feed it."""

    def __init__(self, reference: Reference) -> None:
        self.name = reference.name
        self._reference = reference
        self._asked: tuple[list[int], tuple[int, ...]] | None = None
        self._logits: Logits | None = None

    def logits(self, ids: list[int], chunks: tuple[int, ...]) -> Logits:
        if self._logits is None or self._asked != (ids, chunks):
            self._asked, self._logits = (list(ids), chunks), self._reference.logits(ids, chunks)
        return self._logits


def _cache_dtype(variant: Variant) -> CacheDtype:
    found = {spec.dtype for spec in variant.states if spec.growth == "append"}
    return next(iter(found), "float32")


def _check_same_model(package: Package, model: LazyModel) -> None:
    info, config = package.manifest.model, model.config
    described = (info.architecture, info.vocab_size, info.layers, info.hidden_size)
    found = (config.architecture, config.vocab_size, len(config.layers), config.hidden_size)
    if described != found:
        raise PackageError(
            f"{package.root.name} was made from another model: {described} (architecture,"
            f" vocabulary, layers, hidden size), the checkpoint is {found}"
        )


def _prompts(session: Session, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Random tokens; lengths are cut to what the context holds with a token to spare."""
    fitting = sorted({max(1, min(length, session.context_limit - 1)) for length in lengths})
    draw = np.random.default_rng(seed)
    return [draw.integers(0, session.vocab_size, length).tolist() for length in fitting]


def schedules(count: int) -> list[Schedule]:
    whole = Schedule("at once", (count,), 0, lambda s, ids: s.logits(ids, chunk=len(ids)))
    if count == 1:
        return [whole]
    sevens = tuple(min(_CHUNK, count - start) for start in range(0, count, _CHUNK))
    half = count // 2
    return [
        whole,
        Schedule("in sevens", sevens, 0, lambda s, ids: s.logits(ids, chunk=_CHUNK)),
        Schedule("token by token", (1,) * count, 0, _one_by_one),
        Schedule("resumed", (half, *(1,) * (count - half)), half, _resumed),
        Schedule("in a batch", (count,), count - 1, _batched),
    ]


def _one_by_one(session: Session, ids: list[int]) -> Logits:
    session.reset()
    first = session.prefill([ids[:1]])
    return np.concatenate([first, *(session.decode([token]) for token in ids[1:])])


def _resumed(session: Session, ids: list[int]) -> Logits:
    half = len(ids) // 2
    session.reset()
    session.prefill([ids[:half]])
    state = session.snapshot()
    session.decode([ids[0]])  # what happens after a snapshot must not reach it
    session.reset()
    session.resume(state)
    return np.concatenate([session.decode([token]) for token in ids[half:]])


def _batched(session: Session, ids: list[int]) -> Logits:
    """Beside a row of another length, so that padding is there to do harm."""
    twin = session.fork()
    twin.reset()
    return twin.prefill([ids, ids[: max(1, len(ids) // 3)]])[:1]


def _expected(
    model: LazyModel, reference: Reference, ids: list[int], chunks: Sequence[int]
) -> Logits:
    """One uncached forward, but where the rotation depends on how long the context is so far:
    there PyTorch differs from itself, so its cached run in the same chunks is the reference."""
    moving = [rope for rope in model.config.ropes if rope.kind != "fixed"]
    if any(len(ids) > rope.switch_length for rope in moving):
        return reference.logits(ids, tuple(chunks))
    return reference.logits(ids, (len(ids),))


def _check_logits(
    session: Session,
    model: LazyModel,
    reference: Reference,
    prompts: list[list[int]],
    tolerance: float,
    tell: Progress,
) -> Iterator[LogitCheck]:
    plan = [(ids, schedule) for ids in prompts for schedule in schedules(len(ids))]
    for done, (ids, schedule) in enumerate(plan):
        tell("comparing logits", done, len(plan))
        expected = _expected(model, reference, ids, schedule.chunks)[schedule.first :]
        difference = Difference.between(schedule.run(session, ids), expected)
        yield LogitCheck(len(ids), schedule.name, difference, difference.error <= tolerance)


def _check_greedy(
    session: Session,
    model: LazyModel,
    reference: Reference,
    prompt: list[int],
    count: int,
    slack: float,
) -> GreedyCheck:
    """The package's greedy tokens, fed to the reference, are each what it would have chosen, or
    where something is rounded one whose logit is as good within `slack`."""
    prompt = prompt[: max(1, session.context_limit - count)]
    count = min(count, session.context_limit - len(prompt))
    tokens = session.generate(prompt, max_new_tokens=count, stop_ids=())
    flat = [token for token in tokens if isinstance(token, int)]
    chunks = (len(prompt), *(1,) * (count - 1))
    logits = _expected(model, reference, prompt + flat[:-1], chunks)[len(prompt) - 1 :]
    behind = logits.max(-1) - logits[np.arange(len(logits)), flat]
    is_other = (logits.argmax(-1) != flat) & (behind >= slack * max(1.0, float(logits.std())))
    wrong = np.flatnonzero(is_other).tolist()
    return GreedyCheck(len(prompt), count, wrong[0] if wrong else None)


def _examine(
    package: Package,
    variant: Variant,
    model: LazyModel,
    logits: Sequence[LogitCheck],
    greedy: Sequence[GreedyCheck],
    prompts: list[list[int]],
    tolerance: float,
    layers: bool,
    packed: Mapping[str, Readable],
) -> tuple[Culprit | None, tuple[LayerCheck, ...]]:
    """Value by value, fed the way that failed first; the shortest failing prompt tells most."""
    if variant.static is not None:
        return None, ()  # its graphs have other values than the model's
    failed = [check for check in logits if not check.passed]
    if packed:
        ids = prompts[-1][:_PACKED_TOKENS]
        schedule = schedules(len(ids))[min(1, len(ids) - 1)]
        rounding = ROUNDED_TOLERANCES.get(_cache_dtype(variant), TOLERANCE)
        return compare_values(
            package, variant, model, ids, schedule.chunks, schedule.name, rounding, packed
        )
    if not failed and not layers and all(check.passed for check in greedy):
        return None, ()
    tokens = failed[0].prompt_tokens if failed else len(prompts[-1])
    name = failed[0].schedule if failed else "at once"
    ids = next(prompt for prompt in prompts if len(prompt) == tokens)
    schedule = next(each for each in schedules(len(ids)) if each.name == name)
    return compare_values(
        package, variant, model, ids, schedule.chunks, schedule.name, tolerance, packed
    )


def _fidelity(
    session: Session, model: LazyModel, original: Reference, prompts: Sequence[list[int]]
) -> Fidelity:
    differences = [
        Difference.between(
            session.logits(ids, chunk=len(ids)), _expected(model, original, ids, (len(ids),))
        )
        for ids in prompts
    ]
    counts = [len(ids) for ids in prompts]
    total = sum(counts)
    return Fidelity(
        original.name,
        total,
        sum(d.kl * count for d, count in zip(differences, counts, strict=True)) / total,
        sum(d.top1 * count for d, count in zip(differences, counts, strict=True)) / total,
    )
