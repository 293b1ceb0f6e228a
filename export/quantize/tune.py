"""Quantised weights, the exact ones and calibration text go in; the same codes and scales come out,
moved so that a layer's outputs, or the whole model's predictions, are nearer the exact model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import kl_div

from edgewright.custom_ops.packed_weights import QuantizedMatrix
from edgewright.export.quantize.groups import matrix_of, split_values, values_of
from edgewright.export.quantize.plan import WeightGroup
from edgewright.export.quantize.stream import LayerStream, fresh_states
from edgewright.export.quantize.tuned import Mover, Rates, TunedMatrix
from edgewright.model.decoder import Decoder
from edgewright.model.loading import LazyModel

Stacks = Mapping[str, Sequence[QuantizedMatrix]]  # by group key
Advance = Callable[[int], None]

_WHOLE_RATES = Rates(codes=0.01, scales=1e-3)
_LAYER_RATES = Rates(codes=0.02, scales=2e-3)
_STEP_TOKENS = 1024
_RISE, _LEAST_SHARE = 0.05, 0.02
# Of the whole model in memory, for every parameter: the exact one, what is moved, its gradient,
# two means, and what a step makes of it on the way.
_WHOLE_BYTES = 32
WHOLE_LIMIT_BYTES = 6 << 30
# Multiplications, which say how many steps there are: the same number on every machine.
_WHOLE_WORK = 1.2e13
_MOST_STEPS, _LEAST_STEPS = 800, 40
_LAYER_STEPS = 40
_SAVE_EVERY = 50
_JUDGED_ROWS = 8


def whole_steps(model: LazyModel, made_up: bool) -> int:
    """How often the whole model is looked at; never if it is too large for that. There is less to
    be learnt from text that it made up."""
    parameters = model.parameter_count
    if parameters * _WHOLE_BYTES > WHOLE_LIMIT_BYTES:
        return 0
    steps = int(_WHOLE_WORK / (8 * parameters * _STEP_TOKENS))
    most = _MOST_STEPS // 4 if made_up else _MOST_STEPS
    return min(most, steps) if steps >= _LEAST_STEPS else 0


def tune_layer(
    stream: LayerStream,
    index: int,
    groups: Sequence[WeightGroup],
    stacks: Stacks,
    inputs: Tensor,  # [rows, tokens, hidden], as the quantised layers before make them
    targets: Tensor,  # what the exact layer makes of the exact inputs
    embedded: Tensor | None,
    seed: int,
) -> dict[str, tuple[QuantizedMatrix, ...]]:
    """Call with the layer's exact weights in memory."""
    tuned = _tuned(stream.model, groups, stacks)
    mover = Mover(_flat(tuned), _LAYER_RATES)
    places = {name: place for place, name in stream.names_under(f"layers.{index}.").items()}
    layer, prefix = stream.layer(index), f"layers.{index}."
    spread = (targets - inputs).square().mean().clamp_min(1e-20)
    rows = max(1, _STEP_TOKENS // inputs.shape[1])
    order = _order(len(inputs), rows * _LAYER_STEPS, seed)
    for step in range(_LAYER_STEPS):
        chosen = order[step * rows : (step + 1) * rows]
        x = inputs[chosen]
        call = stream.call(x, None if embedded is None else embedded[chosen])
        states = fresh_states(layer.states(""), *x.shape[:2])
        values = {
            places[name].removeprefix(prefix): value
            for name, value in _values(groups, tuned).items()
        }
        y, _ = functional_call(layer, values, (x, call, states))
        ((y - targets[chosen]).square().mean() / spread).backward()
        mover.step(step + 1, _share(step, _LAYER_STEPS))
    return _frozen(tuned)


def tune_whole(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    stacks: Stacks,
    ids: Tensor,  # [rows, tokens]
    steps: int,
    seed: int,
    saved: Path,
    advance: Advance,
) -> dict[str, tuple[QuantizedMatrix, ...]]:
    """A killed run goes on from the file `saved`."""
    decoder = _whole(model)
    tuned = _tuned(model, plan, stacks)
    mover = Mover(_flat(tuned), _WHOLE_RATES)
    rows = max(1, _STEP_TOKENS // ids.shape[1])
    # What a step is never taken on tells whether they were of use.
    judged = min(_JUDGED_ROWS, len(ids) // 2)
    unseen, ids = ids[:judged], ids[judged:]
    order = _order(len(ids), rows * steps, seed)
    for step in range(_resume(mover, saved), steps):
        batch = ids[order[step * rows : (step + 1) * rows]].long()
        with torch.no_grad():
            wanted = run(decoder, batch, {}).log_softmax(-1)
        guess = run(decoder, batch, _values(plan, tuned)).log_softmax(-1)
        loss = kl_div(guess, wanted, reduction="sum", log_target=True) / batch.numel()
        loss.backward()  # type: ignore[no-untyped-call]
        mover.step(step + 1, _share(step, steps))
        advance(step + 1)
        if (step + 1) % _SAVE_EVERY == 0:
            _save(mover, saved, step + 1)
    found = _frozen(tuned)
    if not judged:
        return found
    before = {group.key: tuple(stacks[group.key]) for group in plan}
    kept = [_divergence(decoder, plan, each, unseen) for each in (before, found)]
    return found if kept[1] < kept[0] else before


@torch.no_grad()
def _divergence(
    decoder: Decoder, plan: Sequence[WeightGroup], stacks: Stacks, ids: Tensor
) -> float:
    """KL, summed over tokens, of the model with these weights from the exact one."""
    values: dict[str, Tensor] = {}
    for group in plan:
        values |= values_of(group, stacks[group.key])
    total = 0.0
    for row in ids.long():
        wanted = run(decoder, row[None], {}).log_softmax(-1)
        found = run(decoder, row[None], values).log_softmax(-1)
        total += float(kl_div(found, wanted, reduction="sum", log_target=True))
    return total


def run(decoder: Decoder, ids: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """[batch, tokens] → logits of every token, with other values for some parameters."""
    batch, tokens = ids.shape
    arguments = (
        ids,
        torch.zeros(batch, dtype=torch.int64),
        torch.full((batch,), tokens),
        torch.arange(tokens).expand(batch, -1),
        fresh_states(list(decoder.layout), batch, tokens),
    )
    logits: Tensor = functional_call(decoder, dict(values), arguments)[0]
    return logits


def _whole(model: LazyModel) -> Decoder:
    stream = LayerStream(model)
    stream.hold()
    return stream.decoder


@dataclass(frozen=True)
class _Tuned:
    group: WeightGroup
    stack: tuple[TunedMatrix, ...]


def _tuned(model: LazyModel, groups: Sequence[WeightGroup], stacks: Stacks) -> list[_Tuned]:
    return [
        _Tuned(
            group,
            tuple(
                TunedMatrix(matrix, matrix_of(model, group, index))
                for index, matrix in enumerate(stacks[group.key])
            ),
        )
        for group in groups
    ]


def _flat(tuned: Sequence[_Tuned]) -> dict[str, TunedMatrix]:
    return {
        f"{each.group.key}/{index}": matrix
        for each in tuned
        for index, matrix in enumerate(each.stack)
    }


def _values(groups: Sequence[WeightGroup], tuned: Sequence[_Tuned]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for group, each in zip(groups, tuned, strict=True):
        found |= split_values(group, [matrix.value() for matrix in each.stack])
    return found


def _frozen(tuned: Sequence[_Tuned]) -> dict[str, tuple[QuantizedMatrix, ...]]:
    return {each.group.key: tuple(matrix.frozen() for matrix in each.stack) for each in tuned}


def _order(rows: int, wanted: int, seed: int) -> Tensor:
    """Every row once in an order of its own, before any is met again."""
    draw = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(rows, generator=draw) for _ in range(math.ceil(wanted / rows))]
    return torch.cat(rounds)[:wanted] if rounds else torch.empty(0, dtype=torch.int64)


def _share(step: int, steps: int) -> float:
    """Of the full rates: a short rise, then half a cosine down."""
    done = (step + 1) / steps
    rise = min(1.0, done / _RISE)
    return rise * (_LEAST_SHARE + (1 - _LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def _save(mover: Mover, path: Path, step: int) -> None:
    partial = path.with_suffix(".partial")
    tensors = {n: t.detach().contiguous() for n, t in [*mover.state.items(), *mover.memory.items()]}
    save_file(tensors, partial, {"step": str(step)})
    partial.replace(path)


def _resume(mover: Mover, path: Path) -> int:
    with suppress(OSError, SafetensorError, KeyError, ValueError):
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            mover.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return step
    return 0
