"""The parity table again, from an installed wheel in an environment that has no torch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import model_zoo as zoo
from tests.parity import check_package
from tests.parity.built import build


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_the_wheel_equals_transformers(
    name: str,
    parity_folder: Path,
    run_on_device: Callable[[Sequence[str]], subprocess.CompletedProcess[str]],
) -> None:
    built = build(name, parity_folder)
    script = check_package.__file__
    ended = run_on_device([script, str(built.package), str(built.expected)])
    assert ended.stdout.splitlines() == ["ok"], ended.stdout + ended.stderr
