"""Providers: one file each, named for the provider, saying what it takes and how it wants it. One
that is compiled for a chip is asked for with the chip's name, as qnn:sm8650."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import onnx_ir as ir

from edgewright.artifacts import PackageWriter
from edgewright.artifacts.errors import ExportError
from edgewright.export.static import StaticShapes
from edgewright.export.stored import Stored

_NAMED = 5


@dataclass(frozen=True)
class Provider:
    """`domains` maps each op domain to the op types it takes, or None for all of them. `lower`, if
    it is given, makes what it takes of the graph with our own ops and of that graph's weights;
    `static` asks for a prefill and a decode graph of fixed shapes instead. `types` are those of
    the values that an op takes and gives, under "" for ops not named; without any, all are. `limit`
    says of a node whose op is taken why it is not all the same. `notes` are what a user has to know
    of a variant, each a line."""

    name: str
    opset: int
    ir_version: int
    onnxruntime_min: str
    domains: dict[str, frozenset[str] | None]
    native_ops: bool
    lower: Callable[[Stored, PackageWriter], Stored] | None = None
    static: StaticShapes | None = None
    types: Mapping[str, Set[ir.DataType]] = field(default_factory=dict)
    limit: Callable[[ir.Node], str | None] | None = None
    notes: tuple[str, ...] = ()

    @property
    def variant_name(self) -> str:
        """The name in words that a path may have."""
        return self.name.replace(":", "-")

    @property
    def computes_in_integers(self) -> bool:
        return self.static is not None and self.static.quantise is not None

    def foreign_nodes(self, model: ir.Model) -> list[str]:
        """What the provider does not take of the graph: the nodes' names and ops."""
        if model.opset_imports[""] > self.opset:
            raise ExportError(
                f"provider {self.name} takes opset {self.opset} at most; the graph is written in"
                f" {model.opset_imports['']}"
            )
        reasons = ((node, self._reason_against(node)) for node in model.graph.all_nodes())
        return [
            f"{node.name} ({node.domain}{'::' if node.domain else ''}{node.op_type}{reason})"
            for node, reason in reasons
            if reason is not None
        ]

    def refuse(self, foreign: Sequence[str]) -> None:
        """Placement is strict: a node the provider does not take is an error that names it."""
        if foreign:
            named = ", ".join(foreign[:_NAMED]) + (", ..." if len(foreign) > _NAMED else "")
            raise ExportError(
                f"provider {self.name} does not take {len(foreign)} of the graph's nodes: {named};"
                " --allow-fallback leaves such nodes to the processor"
            )

    def _reason_against(self, node: ir.Node) -> str | None:
        """Empty where it is the op itself; None where the node is taken."""
        taken = self.domains.get(node.domain, frozenset())
        if taken is not None and node.op_type not in taken:
            return ""
        types = self.types.get(node.op_type, self.types.get(""))
        values = [v for v in node.inputs if v is not None and not v.is_initializer()]
        for value in (*values, *node.outputs):
            if types is not None and value.dtype is not None and value.dtype not in types:
                return f" of {value.dtype.name.lower()} values"
        reason = self.limit(node) if self.limit is not None else None
        return None if reason is None else f": {reason}"


def known_providers() -> list[str]:
    return sorted(name for module in _modules() for name in _providers_of(module))


def find_provider(name: str) -> Provider:
    module = name.partition(":")[0]
    found = _providers_of(module) if module in _modules() else {}
    if name not in found:
        raise ExportError(
            f"provider {name!r} is not known; known are: {', '.join(known_providers())}"
        )
    return found[name]


def _modules() -> list[str]:
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]


def _providers_of(module: str) -> Mapping[str, Provider]:
    """A file has a PROVIDER, or PROVIDERS, one for each chip."""
    found = importlib.import_module(f"{__name__}.{module.replace('-', '_')}")
    providers: tuple[Provider, ...] = getattr(found, "PROVIDERS", None) or (found.PROVIDER,)
    return {provider.name: provider for provider in providers}
