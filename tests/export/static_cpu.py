"""Static providers that the CPU stands in for, so that what they make runs everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgewright.export import options
from edgewright.export.providers import Provider, find_provider
from edgewright.export.static import StaticShapes


def static_cpu(name: str, shapes: StaticShapes) -> Provider:
    return Provider(
        name=f"cpu:{name}",
        opset=23,
        ir_version=10,
        onnxruntime_min="1.30",
        domains={"": None},
        native_ops=False,
        static=shapes,
    )


@contextmanager
def offered(*providers: Provider) -> Iterator[tuple[str, ...]]:
    """Their names, under which an export finds them."""
    known = {provider.name: provider for provider in providers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "find_provider", lambda name: known.get(name) or find_provider(name))
        yield tuple(known)
