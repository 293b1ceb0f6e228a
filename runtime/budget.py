"""What a session may use goes in; a refusal comes out before the memory is taken."""

from __future__ import annotations

from dataclasses import dataclass

from edgewright.artifacts.errors import SessionError
from edgewright.artifacts.states import StateLayout


@dataclass(frozen=True)
class Budget:
    """Bytes that the states of one session may take; weights stay mapped and are not counted."""

    memory_bytes: int

    def capacity(self, layout: StateLayout, batch: int, needed: int, wanted: int) -> int:
        """As many tokens a row as fit, up to `wanted`; an error where `needed` do not."""
        smallest = batch * (layout.bytes_fixed + layout.bytes_per_token * needed)
        if smallest > self.memory_bytes:
            raise SessionError(
                f"{batch} rows of {needed} tokens need {smallest} bytes of state; the budget is "
                f"{self.memory_bytes}: use fewer rows or tokens, or a larger budget"
            )
        if layout.bytes_per_token == 0:
            return wanted
        room = self.memory_bytes - batch * layout.bytes_fixed
        return min(wanted, room // (batch * layout.bytes_per_token))
