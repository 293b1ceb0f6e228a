"""Providers: one file each, named for the provider, saying what it takes and how it wants it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from edgewright.artifacts import PackageWriter
from edgewright.artifacts.errors import ExportError
from edgewright.export.stored import Stored


@dataclass(frozen=True)
class Provider:
    """`domains` maps each op domain to the op types it takes, or None for all of them. `lower`, if
    it is given, makes what it takes of the graph with our own ops and of that graph's weights."""

    name: str
    opset: int
    ir_version: int
    onnxruntime_min: str
    domains: dict[str, frozenset[str] | None]
    native_ops: bool
    lower: Callable[[Stored, PackageWriter], Stored] | None = None

    def refuse_foreign_nodes(self, model: ir.Model) -> None:
        """Placement is strict: a node the provider does not take is an error that names it."""
        if model.opset_imports[""] > self.opset:
            raise ExportError(
                f"provider {self.name} takes opset {self.opset} at most; the graph is written in"
                f" {model.opset_imports['']}"
            )
        for node in model.graph.all_nodes():
            taken = self.domains.get(node.domain, frozenset())
            if taken is not None and node.op_type not in taken:
                raise ExportError(
                    f"provider {self.name} does not take node {node.name} ({node.domain}"
                    f"{'::' if node.domain else ''}{node.op_type})"
                )


def known_providers() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def find_provider(name: str) -> Provider:
    if name not in known_providers():
        raise ExportError(
            f"provider {name!r} is not known; known are: {', '.join(known_providers())}"
        )
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    provider: Provider = module.PROVIDER
    return provider
