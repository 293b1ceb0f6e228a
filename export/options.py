"""What a caller asks of an export goes in; the same, checked, or one error, comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from edgewright.artifacts.errors import ExportError
from edgewright.custom_ops.compiler import TARGETS, buildable_host
from edgewright.export.providers import Provider, find_provider
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.model.config import CacheDtype

Settings = dict[str, str | int | float | bool | tuple[str, ...] | None]


@dataclass(frozen=True)
class ExportOptions:
    """`quantize` is None where the checkpoint's own values are kept; `calibration` says on what
    text activations are measured."""

    providers: tuple[Provider, ...]
    targets: tuple[str, ...]
    cache_dtype: CacheDtype
    quantize: QuantizeOptions | None
    calibration: QuantizeOptions
    allow_fallback: bool = False

    @staticmethod
    def check(
        providers: Sequence[str],
        targets: Sequence[str] | None,
        cache: str,
        quantize: QuantizeOptions | None,
        calibration: QuantizeOptions | None = None,
        allow_fallback: bool = False,
    ) -> ExportOptions:
        if not providers:
            raise ExportError("no provider was named; cpu is one")
        if len(set(providers)) != len(providers):
            raise ExportError(f"a provider is named twice: {', '.join(providers)}")
        for target in targets or ():
            if target not in TARGETS:
                raise ExportError(f"no target {target!r}; choose from {', '.join(TARGETS)}")
        cache_dtype = next((name for name in get_args(CacheDtype) if name == cache), None)
        if cache_dtype is None:
            known = ", ".join(get_args(CacheDtype))
            raise ExportError(f"cache dtype {cache!r} is not known; choose from {known}")
        found = tuple(find_provider(name) for name in providers)
        chosen = (buildable_host(),) if targets is None else tuple(dict.fromkeys(targets))
        if not any(provider.native_ops for provider in found):
            chosen = ()
        return ExportOptions(
            found,
            chosen,
            cache_dtype,
            quantize,
            calibration or QuantizeOptions(16.0),
            allow_fallback,
        )

    def as_provenance(self) -> Settings:
        return {
            "providers": tuple(provider.name for provider in self.providers),
            "targets": self.targets,
            "cache_dtype": self.cache_dtype,
            "allow_fallback": self.allow_fallback,
            **({"bits": None} if self.quantize is None else self.quantize.as_settings()),
        }
