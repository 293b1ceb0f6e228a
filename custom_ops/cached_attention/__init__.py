"""Grouped-query attention over a paged key/value cache that it appends to in place."""
