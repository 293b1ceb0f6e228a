"""A lazy model, the plan of its weights and the options go in; one blob for each group comes out.

With text, layer by layer: each is calibrated on what the quantised layers before it give, and only
its weights are in memory. Without, tensor by tensor, in bands of rows. What is finished lies in a
folder, where a run that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.json_text import Json
from edgewright.export.quantize.allocate import Choice, Part, Share
from edgewright.export.quantize.budget import Shares, check_reachable, fit_budget, kept_bytes
from edgewright.export.quantize.calibration import STAGE, calibrate
from edgewright.export.quantize.group_weights import quantise_group
from edgewright.export.quantize.made_up import made_up_text
from edgewright.export.quantize.observe import Hessians
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.plan import WeightGroup
from edgewright.export.quantize.prices import blind_sensitivity, parts_of
from edgewright.export.quantize.resume import WorkFolder
from edgewright.export.quantize.sensitivity import Sensitivity, measure
from edgewright.export.quantize.stream import LayerStream
from edgewright.export.quantize.text import CalibrationText, first_rows, read_text
from edgewright.export.quantize.tune import tune_whole, whole_steps
from edgewright.model.loading import LazyModel

Progress = Callable[[str, int, int], None]  # stage, done, total
Warn = Callable[[str], None]

# Gradients are taken of so many tokens; they only say which weights matter more than others.
_SENSITIVITY_TOKENS = 4096
_PIECE_BYTES = 4 << 20
_TUNED = "tuned"


@dataclass(frozen=True)
class PackedGroup:
    path: Path
    size: int  # bytes of the blob
    widths: tuple[int, ...]  # bits of its segments

    def pieces(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece


@dataclass(frozen=True)
class TensorReport:
    name: str  # of the group
    rows: int
    columns: int
    bits: float  # of its codes, in the mean
    outliers: float  # the share of its weights that may have a correction
    stored_bytes: int


@dataclass(frozen=True)
class Quantized:
    groups: Mapping[str, PackedGroup]  # by group key
    bits: float  # of all stored bytes, by the parameters they stand for
    method: str  # what was done
    tokens: int  # of text that it was calibrated with
    tensors: tuple[TensorReport, ...]
    work: WorkFolder

    def discard(self) -> None:
        """The blobs are no longer needed, nor what a killed run would go on from."""
        self.work.discard()


def quantize_model(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    options: QuantizeOptions,
    progress: Progress,
    warn: Warn,
) -> Quantized:
    if not plan:
        raise ExportError("this model has no weight that can be quantised: leave out --bits")
    check_reachable(model, plan, options.bits, options.block)
    text = _text(model, options, progress)
    work = WorkFolder(options.resume, _made_of(model, plan, options, text))
    known = _measured(model, plan, options, text, work, progress)
    scaled = _scalable(model, plan, options, text)
    shares = _shares(model, plan, options, known, scaled, work, progress)
    if text is None:
        _without_text(model, plan, shares, options, work, progress)
    else:
        calibrate(model, plan, shares, options, text.sample, known.hessians, scaled, work, progress)
    stage = STAGE
    if text is not None and options.method == "auto" and options.tune:
        stage = _tuned(model, plan, options, text, work, progress)
    return _result(model, plan, shares, options, text, work, stage)


def _text(model: LazyModel, options: QuantizeOptions, progress: Progress) -> CalibrationText | None:
    if options.method == "rtn":
        return None
    if options.text is None:
        return made_up_text(model, options.tokens, options.seed, progress)
    return read_text(model, options)


@dataclass(frozen=True)
class _Measured:
    sensitivities: Mapping[str, Sensitivity]  # by parameter; none without text
    hessians: Mapping[str, Tensor]  # of weights that are used in several places


def _made_of(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    options: QuantizeOptions,
    text: CalibrationText | None,
) -> dict[str, Json]:
    files = sorted(model.checkpoint.path.glob("*.safetensors"))
    return {
        "checkpoint": model.checkpoint.identity,
        # The identity is of names and shapes; values that changed show in these.
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "options": dict(options.as_settings()),
        "text": None if text is None else text.sha256,
        "plan": [[*group.names] for group in plan],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _measured(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    options: QuantizeOptions,
    text: CalibrationText | None,
    work: WorkFolder,
    progress: Progress,
) -> _Measured:
    if text is None:
        return _Measured({}, {})
    names = [name for group in plan for name in group.names]
    stream = LayerStream(model)
    several = stream.used_in_several([group.key for group in plan])
    saved = work.load_tensors("measured")
    if saved is None:
        hessians = Hessians({name: model.weights[name].shape for name in several})
        total, done = 3 * len(stream), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("measuring sensitivity", done, total)

        ids = first_rows(text.sample, _SENSITIVITY_TOKENS)
        found = measure(stream, ids, names, hessians, options.seed, work.path, advance)
        saved = {f"rows/{name}": each.rows for name, each in found.items()}
        saved |= {f"columns/{name}": each.columns for name, each in found.items()}
        saved |= {f"hessian/{name}": hessians.take(name) for name in several}
        work.save_tensors("measured", saved)
    return _Measured(
        {name: Sensitivity(saved[f"rows/{name}"], saved[f"columns/{name}"]) for name in names},
        {name: saved[f"hessian/{name}"] for name in several},
    )


def _scalable(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    options: QuantizeOptions,
    text: CalibrationText | None,
) -> frozenset[str]:
    """The groups whose columns may be scaled. Where the whole model is tuned afterwards, that finds
    what a column scale gives without its bytes."""
    if options.method == "auto":
        tuned = options.tune and whole_steps(model, options.text is None) > 0
    else:
        tuned = options.method != "awq"
    if text is None or tuned:
        return frozenset()
    return frozenset(
        group.key for group in plan if group.kind == "matmul" and not group.also_gathered
    )


def _shares(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    options: QuantizeOptions,
    known: _Measured,
    scaled: frozenset[str],
    work: WorkFolder,
    progress: Progress,
) -> dict[str, tuple[Share, ...]]:
    saved = work.load_json("shares")
    if isinstance(saved, dict):
        # Our own file, in a folder whose making is checked.
        kept = cast(dict[str, list[tuple[int, int, float, bool]]], saved)
        return {key: tuple(_share(key, row) for row in rows) for key, rows in kept.items()}
    parts: list[Part] = []
    for done, group in enumerate(plan):
        progress("choosing widths", done, len(plan))
        felt = {
            name: known.sensitivities.get(name) or blind_sensitivity(model, name)
            for name in group.names
        }
        parts += parts_of(model, group, felt, options)
    shares = fit_budget(model, plan, parts, options.bits, options.block, scaled)
    rows: dict[str, Json] = {
        key: [[s.rows, s.choice.bits, s.choice.outliers, s.choice.zeros] for s in found]
        for key, found in shares.items()
    }
    work.save_json("shares", rows)
    return shares


def _share(key: str, row: tuple[int, int, float, bool]) -> Share:
    rows, bits, outliers, zeros = row
    return Share(key, rows, Choice(bits, outliers, zeros))


def _without_text(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    shares: Shares,
    options: QuantizeOptions,
    work: WorkFolder,
    progress: Progress,
) -> None:
    sizes = [group.shape[0] * group.shape[1] * group.shape[2] for group in plan]
    for done, group in enumerate(plan):
        progress("quantising", sum(sizes[:done]), sum(sizes))
        if not work.blob(STAGE, group.key).is_file():
            own = shares[group.key]
            stack = quantise_group(
                model, group, own, options.block, None, compensated=False, scaled=False
            )
            work.save_stack(STAGE, group.key, stack)
    progress("quantising", sum(sizes), sum(sizes))


def _tuned(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    options: QuantizeOptions,
    text: CalibrationText,
    work: WorkFolder,
    progress: Progress,
) -> str:
    """The stage whose blobs are the result."""
    steps = whole_steps(model, options.text is None)
    if not steps:
        return STAGE
    if not all(work.blob(_TUNED, group.key).is_file() for group in plan):
        stacks = {group.key: work.load_stack(STAGE, group.key) or () for group in plan}
        found = tune_whole(
            model,
            plan,
            stacks,
            text.every,
            steps,
            options.seed,
            work.path / "tuning.safetensors",
            lambda done: progress("tuning", done, steps),
        )
        for key, stack in found.items():
            work.save_stack(_TUNED, key, stack)
    return _TUNED


def _result(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    shares: Shares,
    options: QuantizeOptions,
    text: CalibrationText | None,
    work: WorkFolder,
    stage: str,
) -> Quantized:
    groups: dict[str, PackedGroup] = {}
    reports: list[TensorReport] = []
    for group in plan:
        own, path = shares[group.key], work.blob(stage, group.key)
        rows = sum(share.rows for share in own)
        groups[group.key] = PackedGroup(
            path, path.stat().st_size, tuple(share.choice.bits for share in own)
        )
        reports.append(
            TensorReport(
                group.key,
                rows * group.shape[0],
                group.shape[2],
                sum(share.rows * share.choice.bits for share in own) / rows,
                sum(share.rows * share.choice.outliers for share in own) / rows,
                groups[group.key].size,
            )
        )
    stored = kept_bytes(model, plan) + sum(each.size for each in groups.values())
    method: str = options.method
    if method == "auto":
        method = "gptq" if text else "rtn"
    if stage == _TUNED:
        method += ", tuned"
    if text is not None and options.text is None:
        method += ", on text it made up"
    return Quantized(
        groups,
        8 * stored / model.parameter_count,
        method,
        0 if text is None else text.sample.numel(),
        tuple(reports),
        work,
    )
