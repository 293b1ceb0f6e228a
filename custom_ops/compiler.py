"""A target goes in; its op library comes out, compiled by pip's zig and cached by content."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgewright.artifacts.errors import ToolchainError
from edgewright.artifacts.host_target import host_target
from edgewright.artifacts.user_dirs import cache_dir
from edgewright.custom_ops import OPS, OpSpec
from edgewright.custom_ops.op_table import op_table

_ROOT = Path(__file__).parent

# The processors that each version of a kernel is made for; native/cpu.h knows when one may run.
_ISAS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {
        "scalar": "x86_64",
        "sse2": "x86_64",
        "avx2": "x86_64+avx2+fma+f16c",
        "avx512": "x86_64+avx2+fma+f16c+avx512f+avx512dq+avx512bw+avx512vl+avx512vnni",
    },
    "aarch64": {
        "scalar": "generic",
        "neon": "generic",
        "neon_dot": "generic+dotprod",
        "neon_i8mm": "generic+dotprod+i8mm",
    },
}

# These differ from another one in products of bytes alone, and only the kernels that make some are
# compiled for them: native/cpu.h says which one the others come from.
_BYTE_ISAS = ("neon_dot", "neon_i8mm")
_BYTE_PRODUCTS = _ROOT / "native" / "packed_matmul.h"
_INCLUDED = re.compile(r'^#include "(.+)"', re.MULTILINE)

# The loops behind the kernels, each compiled once for all of them.
_LOOPS = ("matmul.cc", "packed_matmul.cc")

# Runs only when a session asks for it: one float at a time, as small as it gets.
_SCALAR = "scalar"
_SCALAR_FLAGS = ("-DEDGE_SCALAR", "-Os")

_COMPILE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-Wall",
    "-Wextra",
    "-Werror",
    # No C or C++ library: nothing to link, nothing that a device could lack.
    "-ffreestanding",
    "-nostdinc++",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    # Nothing probes the stack, so a frame must be smaller than a guard page.
    "-Wframe-larger-than=4000",
)


@dataclass(frozen=True)
class Target:
    """`triple` is zig's; the ABI `none` means that Linux gets no C library."""

    name: str
    triple: str
    library: str
    flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()

    @property
    def isas(self) -> Mapping[str, str]:
        return _ISAS[self.triple.partition("-")[0]]


def _targets() -> Iterator[Target]:
    for arch in _ISAS:
        pic = ("-fPIC",)
        # The other two systems' linkers refuse an undefined symbol by themselves.
        closed = ("-Wl,-z,defs",)
        yield Target(f"linux-{arch}", f"{arch}-linux-none", "libedgewright_ops.so", pic, closed)
        yield Target(f"macos-{arch}", f"{arch}-macos", "libedgewright_ops.dylib", pic)
        no_probe = ("-mno-stack-arg-probe",)
        system = ("-lkernel32",)
        yield Target(
            f"windows-{arch}", f"{arch}-windows-gnu", "edgewright_ops.dll", no_probe, system
        )


TARGETS_BY_NAME: Mapping[str, Target] = {target.name: target for target in _targets()}
TARGETS: tuple[str, ...] = tuple(TARGETS_BY_NAME)


@dataclass(frozen=True)
class Unit:
    """One source file for one instruction set. Zig finds its own earlier result again, unless the
    flags name a folder that changes from build to build."""

    source: Path
    isa: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """One compiled op library in the cache."""

    target: str
    path: Path
    sha256: str

    @cached_property
    def data(self) -> bytes:
        return self.path.read_bytes()


def buildable_host() -> str:
    """The target that runs in this process, if kernels are compiled for it."""
    name = host_target()
    if name not in TARGETS_BY_NAME:
        raise ToolchainError(
            f"this machine is {name}; kernels are compiled for {', '.join(TARGETS)};"
            " the function bodies run without them"
        )
    return name


def build(target: str) -> Library:
    """Compile, unless this machine compiled the same sources for the same target before."""
    from edgewright.artifacts import trust

    if target not in TARGETS_BY_NAME:
        raise ToolchainError(f"no target {target!r}; choose from {', '.join(TARGETS)}")
    chosen = TARGETS_BY_NAME[target]
    root = cache_dir() / "kernels"
    path = root / target / _key(chosen)[:32] / chosen.library
    if path.is_file():
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if trust.is_trusted(sha256):  # else someone else wrote this file: build it again
            return Library(target, path, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as work:
        made = _compile(chosen, Path(work), root / "zig")
        sha256 = hashlib.sha256(made.read_bytes()).hexdigest()
        trust.record(sha256)
        os.replace(made, path)  # another process may be doing the same: either file is right
    return Library(target, path, sha256)


def compiled_ops() -> list[OpSpec]:
    """An op without a kernel.cc runs by its function body."""
    return [spec for spec in OPS.values() if _kernel(spec).is_file()]


def compiled_for(isa: str) -> list[OpSpec]:
    """The ops with a kernel of this instruction set's own."""
    return _byte_ops() if isa in _BYTE_ISAS else compiled_ops()


@cache
def _byte_ops() -> list[OpSpec]:
    return [spec for spec in compiled_ops() if _BYTE_PRODUCTS in _headers(_kernel(spec))]


def _headers(source: Path) -> set[Path]:
    """All that a source file includes, itself or through others."""
    found = {_ROOT / name for name in _INCLUDED.findall(source.read_text())}
    return found.union(*map(_headers, found))


def _kernel(spec: OpSpec) -> Path:
    return _ROOT / spec.function / "kernel.cc"


def _sources() -> list[Path]:
    patterns = ("native/*.h", "native/*.cc", "*/*.h", "*/kernel.cc")
    found = {path for pattern in patterns for path in _ROOT.glob(pattern)}
    return sorted({*found, Path(__file__)})


def _key(target: Target) -> str:
    """Names everything that the library's bytes depend on."""
    digest = hashlib.sha256()
    facts = (_zig_version(), target.triple, *target.flags, *target.link_flags, *_COMPILE_FLAGS)
    for text in (
        *facts,
        *_SCALAR_FLAGS,
        repr(sorted(target.isas.items())),
        _op_table(),
    ):
        digest.update(text.encode() + b"\0")
    for path in _sources():
        digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _zig_version() -> str:
    try:
        found = version("ziglang")
    except PackageNotFoundError:
        found = ""
    if not found or importlib.util.find_spec("ziglang") is None:
        raise ToolchainError(
            "kernels are compiled by zig, and the package ziglang is not installed; "
            "pip install 'edgewright[export]'"
        )
    return found


def _op_table() -> str:
    return op_table(compiled_ops(), _byte_ops())


def _compile(target: Target, work: Path, zig_cache: Path) -> Path:
    (work / "ops.inc").write_text(_op_table())
    native = _ROOT / "native"
    baseline = next(isa for isa in target.isas if isa != _SCALAR)
    units = [Unit(_kernel(spec), isa) for isa in target.isas for spec in compiled_for(isa)]
    units += [Unit(native / name, isa) for isa in target.isas for name in _LOOPS]
    units += [Unit(native / name, baseline) for name in ("scratch.cc", "memory.cc")]
    units.append(Unit(native / "registry.cc", baseline, (f"-I{work}",)))
    return compile_units(target, units, work, zig_cache)


def compile_units(target: Target, units: Sequence[Unit], work: Path, zig_cache: Path) -> Path:
    """One library in `work`."""
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(zig_cache / "global"),
        "ZIG_LOCAL_CACHE_DIR": str(zig_cache / "local"),
    }

    def compile_unit(number: int) -> Path:
        unit = units[number]
        output = work / f"{number}.o"
        machine = ("-target", target.triple, f"-mcpu={target.isas[unit.isa]}")
        flags = (*_COMPILE_FLAGS, *target.flags, f"-DEDGE_ISA={unit.isa}", f"-I{_ROOT}")
        if unit.isa == _SCALAR:
            flags += _SCALAR_FLAGS
        arguments = ("c++", *machine, *flags, *unit.flags, "-c", str(unit.source))
        _zig((*arguments, "-o", str(output)), environment)
        return output

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        objects = [str(path) for path in pool.map(compile_unit, range(len(units)))]
    library = work / target.library
    link = ("cc", "-target", target.triple, "-shared", "-nostdlib", "-s", "-o", str(library))
    _zig((*link, *target.link_flags, *objects), environment)
    return library


def _zig(arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "ziglang", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise ToolchainError(f"zig could not compile the op library: {lines[0].strip()}")
