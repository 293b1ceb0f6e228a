"""A StateLayout goes in; the buffers that the graph reads and writes in place come out."""

from __future__ import annotations

from edgewright.artifacts.errors import PackageError, SessionError
from edgewright.artifacts.manifest import Variant
from edgewright.artifacts.states import StateLayout, StateSpec
from edgewright.runtime.ort import Array, OrtValue, wrap, zeros

_SPARE_TOKENS = 64


def check_layout(variant: Variant) -> None:
    """Refuse what this runtime cannot hold, before anything is allocated."""
    for spec in variant.states:
        if spec.growth == "ring" or (spec.update != "in_graph" and variant.static is None):
            raise PackageError(
                f"state {spec.name} is a {spec.growth} state updated as {spec.update}; this "
                "runtime holds append and replace states, updated in_graph by a step graph"
            )
        if spec.shape[0] != "batch" or (spec.growth == "append") != ("capacity" in spec.shape):
            raise PackageError(
                f"state {spec.name} has the shape {list(spec.shape)}; batch first, and one "
                "capacity in an append state alone, are required"
            )


def grown_capacity(needed: int, current: int, limit: int) -> int:
    """Room for `needed` and some more; doubling, so that a long decode's copies stay linear.

    Room that no token has touched takes address space, not memory.
    """
    return min(limit, max(needed + needed // 4 + _SPARE_TOKENS, 2 * current))


class StateBuffers:
    """One array a state, each seen by the graph as the same OrtValue on its way in and out."""

    def __init__(self, layout: StateLayout, batch: int, capacity: int) -> None:
        self.layout = layout
        self.batch = batch
        self.capacity = capacity
        self.arrays = [self._allocate(spec, capacity) for spec in layout]
        self.values: list[OrtValue] = [wrap(array) for array in self.arrays]

    def _allocate(self, spec: StateSpec, capacity: int) -> Array:
        shape = spec.resolve(self.batch, capacity)
        try:
            return zeros(shape, spec.dtype)
        except (MemoryError, OSError, OverflowError, ValueError) as error:
            raise SessionError(
                f"no memory for state {spec.name} of shape {list(shape)}; "
                "ask for a smaller capacity or batch"
            ) from error

    @property
    def nbytes(self) -> int:
        return self.layout.bytes_fixed * self.batch + (
            self.layout.bytes_per_token * self.batch * self.capacity
        )

    def grow(self, capacity: int, used: int) -> None:
        """One state at a time, so that the peak is all states and one more."""
        for index, spec in enumerate(self.layout):
            if spec.growth == "append":
                bigger = self._allocate(spec, capacity)
                part = used_part(spec, used)
                bigger[part] = self.arrays[index][part]
                self.arrays[index] = bigger
                self.values[index] = wrap(bigger)
        self.capacity = capacity

    def clear(self, used: int) -> None:
        """Back to zero: a NaN left behind would outlive the mask that hides it (0 x NaN)."""
        for spec, array in zip(self.layout, self.arrays, strict=True):
            array[used_part(spec, used)] = 0

    def used(self, used: int) -> tuple[Array, ...]:
        """Views of the part that holds so many tokens."""
        return tuple(
            array[used_part(spec, used)]
            for spec, array in zip(self.layout, self.arrays, strict=True)
        )

    def load(self, arrays: tuple[Array, ...]) -> None:
        for spec, mine, other in zip(self.layout, self.arrays, arrays, strict=True):
            used = other.shape[spec.shape.index("capacity")] if spec.growth == "append" else 0
            mine[used_part(spec, used)] = other


def used_part(spec: StateSpec, used: int) -> tuple[slice, ...]:
    """The slice that holds `used` tokens of every row; all of a state of fixed size."""
    return tuple(slice(0, used) if dim == "capacity" else slice(None) for dim in spec.shape)
