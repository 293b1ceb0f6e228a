"""A variant that was compiled ahead goes in; its graph that names the binary comes out, once both
are what the manifest says and for the chip that is asked for: QNN's loader checks neither."""

from __future__ import annotations

import re
from pathlib import Path

from edgewright.artifacts import Package
from edgewright.artifacts.errors import SessionError
from edgewright.artifacts.manifest import GraphRole, Variant
from edgewright.runtime.execution_providers import Plugin, execution_provider

# What Linux and Android on a Snapdragon say it is, as SM8650.
_MACHINE = Path("/sys/devices/soc0/machine")


def compiled_graph(package: Package, variant: Variant, role: GraphRole) -> bytes:
    """Requires `variant.compiled`."""
    compiled = variant.compiled
    assert compiled is not None
    provider = execution_provider(variant.provider)
    if provider is None or provider.plugin is None:
        raise SessionError(f"{package.root}: {variant.provider} runs nothing that is compiled")
    _check_chip(package, variant, provider.plugin)
    package.verified_path(compiled.graphs[role].binary)
    return package.read_verified(compiled.graphs[role].graph)


def _check_chip(package: Package, variant: Variant, plugin: Plugin) -> None:
    asked, compiled = plugin.chip(variant.provider), variant.compiled
    assert compiled is not None
    if (compiled.soc_model, compiled.htp_arch) != (asked.soc_model, asked.htp_arch):
        raise SessionError(
            f"{package.root}: variant {variant.name} was compiled for SoC {compiled.soc_model}"
            f" (v{compiled.htp_arch}); {variant.provider} is SoC {asked.soc_model}"
            f" (v{asked.htp_arch}): compile it again"
        )
    here = _chip_of_this_machine()
    name = plugin.chip_name(variant.provider)
    if here in plugin.chips and here != name:
        raise SessionError(
            f"{package.root}: variant {variant.name} was compiled for {name}; this machine is"
            f" {here}"
        )


def _chip_of_this_machine() -> str | None:
    try:
        said = _MACHINE.read_text(errors="replace")
    except OSError:
        return None
    found = re.match(r"[A-Za-z0-9]+", said)
    return found[0].lower() if found else None
