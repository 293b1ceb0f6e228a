"""Rows of a packed weight, as an embedding is read."""
