"""A run that was killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgewright.artifacts.errors import ExportError
from edgewright.export.quantize import quantize as module
from edgewright.export.quantize import tune
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.quantize import quantize_model


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_LAYER_STEPS", 2)
    monkeypatch.setattr(tune, "_MOST_STEPS", 4)
    monkeypatch.setattr(tune, "_SAVE_EVERY", 1)
    monkeypatch.setattr(module, "_SENSITIVITY_TOKENS", 256)


@pytest.mark.parametrize("method", ["auto", "rtn"])
def test_a_killed_run_goes_on(method: str, opened: Callable, text: Path, tmp_path: Path) -> None:
    model, plan = opened("llama-biased-tied")
    given = text if method == "auto" else None

    def run(work: str, fatal: int | None = None) -> tuple[dict[str, bytes], int]:
        calls = 0

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Killed

        options = QuantizeOptions.check(8.0, method, text=given, resume=tmp_path / work)
        found = quantize_model(model, plan, options, progress, lambda _: None)
        return {key: b"".join(group.pieces()) for key, group in found.groups.items()}, calls

    expected, calls = run("whole")
    # What was reached is not done again, so each of these comes further than the one before.
    with pytest.raises(Killed):
        run("killed", calls - 2)
    with suppress(Killed):
        run("killed", calls // 3)
    found, fewer = run("killed")
    assert found == expected
    assert fewer < calls


def test_a_folder_of_another_run_is_refused(opened: Callable, tmp_path: Path) -> None:
    model, plan = opened("llama-biased-tied")

    def run(bits: float, work: Path) -> None:
        options = QuantizeOptions.check(bits, resume=work)
        quantize_model(model, plan, options, lambda *_: None, lambda _: None)

    run(7.0, tmp_path / "work")
    with pytest.raises(ExportError, match="another checkpoint, text or set of options"):
        run(6.0, tmp_path / "work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(ExportError, match="not the folder of a quantisation"):
        run(6.0, tmp_path / "other")
