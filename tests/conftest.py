"""A device for all tests: Python, the wheel and ONNX Runtime; no torch, no onnx, and no clone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgewright.artifacts.claims import claimed

ROOT = Path(__file__).parents[1]
_NOT_SOURCE = ("-o", "--exclude-standard")


def pytest_configure() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C; the programs under test inherit
    that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a clean environment into which the wheel was installed with [cpu] alone.

    EDGEWRIGHT_DEVICE_PYTHON names one that is there already; else it is made, once for all the
    processes of a test run.
    """
    if given := os.environ.get("EDGEWRIGHT_DEVICE_PYTHON"):
        return Path(given)
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "device"
    shared.mkdir(exist_ok=True)
    python = shared / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    with claimed(shared):
        if not (shared / "done").exists():
            _install_wheel(shared, python)
            (shared / "done").touch()
    return python


def _install_wheel(folder: Path, python: Path) -> None:
    # Built from a copy: setuptools leaves build/ behind, and another process may be building too.
    source = folder / "source"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", *_NOT_SOURCE]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    _run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source))
    _run(sys.executable, "-m", "venv", str(folder / "venv"))
    (wheel,) = folder.glob("*.whl")
    _run(str(python), "-m", "pip", "install", "--quiet", f"{wheel}[cpu]")


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"


@pytest.fixture(scope="session")
def run_on_device(
    device_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[str]], subprocess.CompletedProcess[str]]:
    """Run that Python with these arguments, away from the clone and without its environment."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [str(device_python), *arguments],
            cwd=elsewhere,
            env=kept,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def parity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of the model zoo, shared by every process of a test run."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "parity"
