"""What a session may use goes in; a refusal comes out before the memory is taken."""

from __future__ import annotations

from dataclasses import dataclass

from edgewright.artifacts.errors import SessionError
from edgewright.artifacts.states import StateLayout


@dataclass(frozen=True)
class Budget:
    """Bytes that the states of one session may take; weights stay mapped and are not counted."""

    memory_bytes: int

    def check(self, layout: StateLayout, batch: int, capacity: int) -> None:
        needed = batch * (layout.bytes_fixed + layout.bytes_per_token * capacity)
        if needed > self.memory_bytes:
            raise SessionError(
                f"{batch} rows of {capacity} tokens need {needed} bytes of state; the budget is "
                f"{self.memory_bytes}: use fewer rows or tokens, or a larger budget"
            )
