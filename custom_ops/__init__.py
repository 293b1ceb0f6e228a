"""The folders beside this file go in; `OPS`, every op by its name, comes out. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from edgewright.custom_ops.spec import DOMAIN, VERSION, OpSpec

__all__ = ["DOMAIN", "OPS", "VERSION", "OpSpec"]


def _discover() -> Mapping[str, OpSpec]:
    ops: dict[str, OpSpec] = {}
    for path in sorted(Path(__file__).parent.glob("*/spec.py")):
        folder = path.parent.name
        spec: OpSpec = import_module(f"{__name__}.{folder}.spec").SPEC
        assert spec.function == folder, f"{path}: op {spec.function!r} must live in its own folder"
        ops[spec.name] = spec
    return MappingProxyType(ops)


OPS = _discover()
