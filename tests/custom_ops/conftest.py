"""What the tests of the ops share: the library, the instruction sets, one op in a graph."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from edgewright.artifacts.user_dirs import cache_dir
from edgewright.custom_ops.compiler import (
    TARGETS_BY_NAME,
    Library,
    Unit,
    build,
    buildable_host,
    compile_units,
)
from lab import arm64_worker
from tests.custom_ops import emulated
from tests.custom_ops.single_op import SingleOp

Probe = Callable[..., None]
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]

TARGET = TARGETS_BY_NAME[buildable_host()]
ISAS = emulated.ISAS if emulated.ROOT else tuple(TARGET.isas)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under emulation, what is swept over instruction sets."""
    if emulated.ROOT:
        kept = [item for item in items if emulated.is_sweep(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(scope="session")
def library() -> Library:
    return build(emulated.TARGET if emulated.ROOT else buildable_host())


@pytest.fixture(scope="session")
def single_op() -> Callable[..., SingleOp]:
    return SingleOp


@pytest.fixture(scope="session", params=ISAS)
def isa(request: pytest.FixtureRequest, library: Library) -> str:
    """Every instruction set that this machine has, or that is emulated."""
    if emulated.ROOT:
        return str(request.param)
    best = ctypes.CDLL(str(library.path)).edgewright_isa
    best.restype = ctypes.c_char_p
    names = list(TARGET.isas)
    if names.index(request.param) > names.index(best().decode()):
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


@pytest.fixture(params=(1, 2))
def product(
    request: pytest.FixtureRequest, library: Library, isa: str, single_op: Callable[..., SingleOp]
) -> Product:
    """x, blob → y, in one session for all: the weight is an input like x."""
    inputs = {"x": np.zeros((1, 1), np.float32), "weight": np.zeros(1, np.uint8)}
    op = single_op("BlockMatMul", inputs, symbolic=("x", "weight"))
    session = op.session(library, isa, threads=request.param)

    def run(x: np.ndarray, blob: np.ndarray) -> np.ndarray:
        y: np.ndarray = session.run(None, {"x": x, "weight": blob})[0]
        return y

    return run


@pytest.fixture(scope="session")
def probe(isa: str, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    """probe.cc, for calls of the native functions one by one: its name, arrays and sizes."""
    target = TARGETS_BY_NAME[emulated.TARGET] if emulated.ROOT else TARGET
    memory = Path(__file__).parents[2] / "custom_ops" / "native" / "memory.cc"
    units = [Unit(Path(__file__).parent / "probe.cc", isa), Unit(memory, isa)]
    folder = tmp_path_factory.mktemp("probe")
    path = compile_units(target, units, folder, cache_dir() / "kernels" / "zig")
    call_native = partial(emulated.call_native, isa) if emulated.ROOT else arm64_worker.call_native
    return lambda name, *arguments: call_native(str(path), f"probe_{name}", arguments)
