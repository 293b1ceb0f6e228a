"""Every architecture, from a checkpoint that transformers wrote to tokens, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewright.artifacts import trust
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.parity.built import build
from tests.parity.check_package import check, check_greedy, error, in_sevens


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_kernels_equal_transformers(name: str, parity_folder: Path) -> None:
    built = build(name, parity_folder)
    session = Session.open(built.package)
    assert session.kernels == "native"
    with np.load(built.expected) as expected:
        assert check(session, dict(expected)) == []


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_function_bodies_equal_transformers(
    name: str, parity_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(name, parity_folder)
    monkeypatch.setattr(trust, "is_trusted", lambda sha256: False)
    session = Session.open(built.package)
    assert session.kernels == "portable"
    with np.load(built.expected) as stored:
        expected = dict(stored)
    found = in_sevens(session, expected["17.ids"].tolist())
    assert error(found, expected["17.at_once"]) <= zoo.TOLERANCE
    assert check_greedy(session, expected) == []
