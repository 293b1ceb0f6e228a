"""Padding in a batch leaves the recurrent states alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgewright.artifacts import trust
from edgewright.artifacts.states import StateSpec
from edgewright.model.loading import open_model
from edgewright.runtime import Session
from edgewright.runtime.ort import Array
from edgewright.runtime.state import State
from tests import model_zoo as zoo
from tests.parity.built import build

# Each recurrent mixer, alone and beside attention.
NAMES = (
    "mamba-biased",
    "mamba2-grouped",
    "jamba-dense-tied",
    "lfm2",
    "recurrent-gemma",
    "olmo-hybrid-unrotated",
    "kimi-linear-ranked",
)


@pytest.fixture(params=["native", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind: str = request.param
    if kind == "portable":
        monkeypatch.setattr(trust, "is_trusted", lambda sha256: False)
    return kind


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_tokens_keeps_its_states(
    name: str, kernels: str, parity_folder: Path
) -> None:
    session = Session.open(build(name, parity_folder).package)
    assert session.kernels == kernels
    session.prefill([zoo.prompt(name, 9), zoo.prompt(name, 6)])
    before = session.snapshot()
    # Row 0 has the calls to itself, in one piece and in two.
    session.prefill([zoo.prompt(name, 17), []])
    session.prefill([zoo.prompt(name, 12), []], chunk=7)
    after = session.snapshot()
    assert _equal(_recurrent(session, after, 1), _recurrent(session, before, 1))
    assert not _equal(_recurrent(session, after, 0), _recurrent(session, before, 0))


@pytest.mark.parametrize("name", NAMES)
def test_a_padded_row_has_the_states_of_its_tokens_alone(
    name: str, kernels: str, parity_folder: Path
) -> None:
    """Nearly: a matrix product of more rows may add up in another order."""
    session = Session.open(build(name, parity_folder).package)
    assert session.kernels == kernels
    short, long = zoo.prompt(name, 5), zoo.prompt(name, 17)
    session.prefill([short, long])
    padded = _recurrent(session, session.snapshot(), 0)
    session.reset()
    session.prefill([short])
    for state, alone in _recurrent(session, session.snapshot(), 0).items():
        worst = np.abs(padded[state] - alone).max() / max(1.0, np.abs(alone).max())
        assert worst <= zoo.TOLERANCE, state


@pytest.mark.parametrize("name", NAMES)
def test_the_states_do_not_depend_on_what_pads_a_row(name: str, parity_folder: Path) -> None:
    decoder = open_model(build(name, parity_folder).checkpoint).materialise()
    ids = torch.tensor([zoo.prompt(name, 17)] * 2)
    length = torch.tensor([5, 17])
    states = [torch.zeros(spec.resolve(2, 17)) for spec in decoder.layout]
    found = []
    for padding in (0, 7, 900):
        ids[0, 5:] = padding
        given = [state.clone() for state in states]
        with torch.no_grad():
            _, after = decoder(ids, torch.zeros_like(length), length, length[:, None] - 1, given)
        found.append([s for s, spec in zip(after, decoder.layout, strict=True) if _kept(spec)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def _kept(spec: StateSpec) -> bool:
    return spec.growth == "replace"


def _recurrent(session: Session, state: State, row: int) -> dict[str, Array]:
    """Each state of fixed size of one row."""
    layout = session.package.manifest.variants[0].states
    pairs = zip(layout, state.arrays, strict=True)
    return {spec.name: array[row] for spec, array in pairs if _kept(spec)}


def _equal(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return all(np.array_equal(a[name], b[name]) for name in a)
