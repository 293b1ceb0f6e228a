"""Quantising: a model and a bit budget go in, packed weights come out, layer by layer."""
