"""The recurrence of selective state spaces (S6): a decay of its own for every channel and state."""
