"""A lazy model, the widths of its weights and calibration text go in; the quantised stacks come
out, in a folder, one layer's weights in memory at a time.

Each layer's weights are quantised for what the quantised layers before it give them, and then moved
so that the layer gives what the exact one gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from edgewright.custom_ops.packed_weights import QuantizedMatrix
from edgewright.export.quantize.budget import Shares
from edgewright.export.quantize.group_weights import quantise_group
from edgewright.export.quantize.groups import values_of
from edgewright.export.quantize.observe import Hessians
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.plan import WeightGroup
from edgewright.export.quantize.resume import WorkFolder
from edgewright.export.quantize.sensitivity import EMBEDDING
from edgewright.export.quantize.stream import LayerStream, batches
from edgewright.export.quantize.tune import tune_layer
from edgewright.model.loading import LazyModel

STAGE = "quantised"
Progress = Callable[[str, int, int], None]
Stack = tuple[QuantizedMatrix, ...]


def calibrate(
    model: LazyModel,
    plan: Sequence[WeightGroup],
    shares: Shares,
    options: QuantizeOptions,
    ids: Tensor,  # [rows, tokens]
    known: Mapping[str, Tensor],  # hessians of weights that are used in several places
    scaled: frozenset[str],
    work: WorkFolder,
    progress: Progress,
) -> None:
    _Calibration(model, plan, shares, options, ids, known, scaled, work, progress).run()


class _Calibration:
    def __init__(
        self,
        model: LazyModel,
        plan: Sequence[WeightGroup],
        shares: Shares,
        options: QuantizeOptions,
        ids: Tensor,
        known: Mapping[str, Tensor],
        scaled: frozenset[str],
        work: WorkFolder,
        progress: Progress,
    ) -> None:
        self.model, self.plan, self.shares, self.options = model, plan, shares, options
        self.ids, self.known, self.scaled = ids, known, scaled
        self.work, self.progress = work, progress
        self.stream = LayerStream(model)
        self.tuned_by_layer = options.tune and options.method == "auto"
        self.group_of = {name: group for group in plan for name in group.names}
        self.done = 0

    @torch.no_grad()
    def run(self) -> None:
        stream = self.stream
        exact = self._embedded()
        rough = exact.clone()
        embedded = (exact.clone(), exact.clone()) if stream.sees_embedding else (None, None)
        if EMBEDDING in self.group_of:
            group = self.group_of[EMBEDDING]
            values = values_of(group, self._finished([group], {})[group.key])
            rough = self._embedded(values)
            if embedded[1] is not None:
                embedded = (embedded[0], rough.clone())
        for index in range(len(stream)):
            self._layer(index, exact, rough, embedded)
        self._head(rough)

    def _embedded(self, values: Mapping[str, Tensor] | None = None) -> Tensor:
        with self.stream.loaded("embedding.", values=(values or {}).get):
            return self.stream.embed(self.ids)

    def _layer(
        self,
        index: int,
        exact: Tensor,
        rough: Tensor,
        embedded: tuple[Tensor | None, Tensor | None],
    ) -> None:
        """Both streams go on to the next layer, in place."""
        stream, prefix = self.stream, f"layers.{index}."
        groups = self._groups_under(prefix)
        own = [group for group in groups if group.key.startswith(prefix)]
        missing = [group for group in own if self._load(group) is None]
        with stream.loaded(prefix):
            targets = self._moved(index, exact, embedded[0]) if self.tuned_by_layer else exact
            hessians = self._hessians(index, missing, rough, embedded[1])
            stacks = self._finished(own, hessians, save=not self.tuned_by_layer)
            if self.tuned_by_layer and missing:
                with torch.enable_grad():
                    stacks = tune_layer(
                        stream, index, own, stacks, rough, targets, embedded[1], self.options.seed
                    )
                for key, stack in stacks.items():
                    self.work.save_stack(STAGE, key, stack)
        values: dict[str, Tensor] = {}
        for group in groups:
            values |= values_of(group, stacks.get(group.key) or self._stored(group))
        with stream.loaded(prefix, values=values.get):
            rough.copy_(self._moved(index, rough, embedded[1]))
        if self.tuned_by_layer:
            exact.copy_(targets)

    def _groups_under(self, prefix: str) -> list[WeightGroup]:
        """Of a layer, those that it shares with an earlier one too."""
        names = self.stream.names_under(prefix).values()
        found = {self.group_of[name].key for name in names if name in self.group_of}
        return [group for group in self.plan if group.key in found]

    def _hessians(
        self, index: int, groups: Sequence[WeightGroup], rough: Tensor, embedded: Tensor | None
    ) -> dict[str, Tensor]:
        """Call with the layer's exact weights in memory."""
        prefix = f"layers.{index}."
        wanted = [group.key for group in groups if group.key not in self.known]
        shapes = {name: self.model.weights[name].shape for name in wanted}
        hessians = Hessians(shapes)
        if wanted:
            with self.stream.loaded(prefix) as held, hessians.watching(held):
                self._moved(index, rough, embedded)
        return {name: hessians.take(name) for name in wanted}

    def _moved(self, index: int, states: Tensor, embedded: Tensor | None) -> Tensor:
        result = torch.empty_like(states)
        for part in batches(*states.shape[:2]):
            own = None if embedded is None else embedded[part]
            result[part] = self.stream.run_layer(index, states[part], own)
        return result

    def _head(self, rough: Tensor) -> None:
        """What is left when all layers are done: a head of its own."""
        groups = [group for group in self.plan if not self.work.blob(STAGE, group.key).is_file()]
        hessians = Hessians({group.key: self.model.weights[group.key].shape for group in groups})
        if groups:
            with self.stream.loaded("norm.", "head.") as held, hessians.watching(held):
                for part in batches(*rough.shape[:2]):
                    self.stream.logits(rough[part])
        self._finished(groups, {group.key: hessians.take(group.key) for group in groups})

    def _load(self, group: WeightGroup) -> Stack | None:
        return self.work.load_stack(STAGE, group.key)

    def _stored(self, group: WeightGroup) -> Stack:
        stack = self._load(group)
        assert stack is not None, f"{group.key} is used before the layer that it is stored with"
        return stack

    def _finished(
        self, groups: Sequence[WeightGroup], hessians: Mapping[str, Tensor], save: bool = True
    ) -> dict[str, Stack]:
        found: dict[str, Stack] = {}
        for group in groups:
            stack = self._load(group)
            if stack is None:
                stack = quantise_group(
                    self.model,
                    group,
                    self.shares[group.key],
                    self.options.block,
                    hessians.get(group.key, self.known.get(group.key)),
                    compensated=self.options.method != "awq",
                    scaled=group.key in self.scaled,
                )
                if save:
                    self.work.save_stack(STAGE, group.key, stack)
            found[group.key] = stack
            self.done += 1
            self.progress("quantising", self.done, len(self.plan))
        return found
