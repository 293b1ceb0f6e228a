"""A package with variants for a chip goes in; the same package with their graphs compiled ahead
comes out. Each graph is compiled in a process of its own, which has so long and may crash."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewright.artifacts import Compiled, CompiledGraph, Package, Variant
from edgewright.artifacts.errors import PackageError, SessionError
from edgewright.artifacts.manifest import GraphRole
from edgewright.runtime.engine import check_release
from edgewright.runtime.execution_providers import Plugin, execution_provider
from edgewright.runtime.ort import load_onnxruntime

Progress = Callable[[str, int, int], None]  # stage, done, total

# A graph, however large, and some time for each of its bytes.
_SECONDS, _SECONDS_PER_MB = 600.0, 1.0


def compilable(package: Package, provider: str | None = None) -> tuple[Variant, ...]:
    """The variants that are for a chip, or the one for the provider asked for."""
    return tuple(
        variant
        for variant in package.manifest.variants
        if _plugin_of(variant.provider) is not None and provider in (None, variant.provider)
    )


def require_plugin(provider: str) -> None:
    """One error where what compiles for it is not installed."""
    plugin = _plugin_of(provider)
    if plugin is None:
        raise SessionError(f"provider {provider} compiles nothing ahead")
    if importlib.util.find_spec(plugin.module) is None:
        raise plugin.missing()


def compile_variant(
    package: Package,
    variant: Variant,
    *,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Package:
    """The package with the variant's graphs compiled; `seconds` is the time each may take."""
    require_plugin(variant.provider)
    check_release(load_onnxruntime().__version__, variant)
    if seconds is None:
        size = sum(package.manifest.files[path].size for path in set(variant.weights))
        seconds = _SECONDS + _SECONDS_PER_MB * size / 1e6
    tell = progress or (lambda *_: None)
    made: dict[GraphRole, _Made] = {}
    for path in (*variant.graphs.values(), *variant.weights):
        package.verified_path(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".compile-", dir=package.root.parent) as folder:
            for done, role in enumerate(variant.graphs):
                tell(f"compiling {variant.name}", done, len(variant.graphs))
                made[role] = _compile(package, variant, role, Path(folder), seconds)
            tell(f"compiling {variant.name}", len(made), len(made))
            return _stored(package, variant, made)
    except OSError as error:
        raise PackageError(f"{package.root}: cannot compile beside it: {error.strerror}") from error


@dataclass(frozen=True)
class _Made:
    graph: Path
    binary: Path
    seconds: float
    compatibility: str
    versions: Mapping[str, str]


def _compile(
    package: Package, variant: Variant, role: GraphRole, folder: Path, seconds: float
) -> _Made:
    report, graph = folder / f"{role}.json", folder / f"{role}.onnx"
    source = package.path(variant.graphs[role])
    words = (variant.provider, str(source), str(package.root), str(graph), str(report))
    said = f"{variant.provider}: {variant.graphs[role]} cannot be compiled"
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "edgewright.runtime.compile_worker", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PackageError(f"{said}: not done after {seconds:.0f} s") from None
    if ended.returncode or not report.is_file():
        raise PackageError(f"{said}: {_how_it_ended(ended)}")
    told = json.loads(report.read_bytes())
    if "error" in told:
        raise PackageError(f"{said}: {told['error']}")
    binaries = sorted(path for path in folder.glob(f"{role}*") if path.suffix == ".bin")
    if len(binaries) != 1:
        raise PackageError(f"{said}: {len(binaries)} binaries came out of it; one is required")
    return _Made(graph, binaries[0], told["seconds"], told["compatibility"], told["versions"])


def _how_it_ended(ended: subprocess.CompletedProcess[bytes]) -> str:
    code = ended.returncode
    if code < 0:
        return f"the compiler was ended by {signal.Signals(-code).name}"
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return f"the compiler left with status {code}{': ' + said[-1] if said else ''}"


def _stored(package: Package, variant: Variant, made: Mapping[GraphRole, _Made]) -> Package:
    """In a folder named by content: what was compiled before is never overwritten."""
    digest = hashlib.sha256()
    for each in made.values():
        for path in (each.graph, each.binary):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    place = f"variants/{variant.name}/compiled-{digest.hexdigest()[:12]}"
    files: dict[str, Path] = {}
    graphs: dict[GraphRole, CompiledGraph] = {}
    for role, each in made.items():
        graph, binary = f"{place}/{each.graph.name}", f"{place}/{each.binary.name}"
        graphs[role] = CompiledGraph(graph, binary, round(each.seconds, 3))
        files |= {graph: each.graph, binary: each.binary}
    plugin = _plugin_of(variant.provider)
    assert plugin is not None
    chip = plugin.chip(variant.provider)
    (one, *_) = made.values()
    compiled = Compiled(chip.soc_model, chip.htp_arch, graphs, one.compatibility, one.versions)
    return package.with_compiled(variant.name, compiled, files)


def _plugin_of(provider: str) -> Plugin | None:
    found = execution_provider(provider)
    return None if found is None else found.plugin
