"""Mamba-2's recurrence: a decaying state per head, written by b and read by c."""
