"""Variants for a chip: a plugin that is missing, a chip that is not known, and the HTP itself."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewright.artifacts import Package
from edgewright.artifacts.errors import SessionError
from edgewright.export import export_checkpoint
from edgewright.export.providers import find_provider
from edgewright.runtime import Session
from edgewright.runtime.execution_providers import EXECUTION_PROVIDERS
from tests import model_zoo as zoo
from tests.export.static_cpu import offered

# A Python with the runtime's needs and onnxruntime-qnn, as the plugin may end its process.
QNN_PYTHON = os.environ.get("EDGEWRIGHT_QNN_PYTHON")
MODELS = ["llama", "minicpm3", "mamba", "bamba", "qwen3.5-text"]
TOKENS, PROMPT = 20, 13
CHIPS = ("qnn:sm8650", "qnn:sm8750")

_RUN = """
import sys, numpy as np
from edgewright.runtime import Session
package, provider, ids, out, prompt = sys.argv[1:]
ids, prompt = [int(token) for token in ids.split(",")], int(prompt)
session = Session.open(package, provider)
rows = [session.prefill([ids[:prompt]])[0], *(session.decode([t])[0] for t in ids[prompt:])]
np.save(out, np.stack(rows))
"""


def test_a_chip_is_known_by_name() -> None:
    with pytest.raises(SessionError, match="knows no chip 'sm1'; it knows sm8550, sm8650"):
        EXECUTION_PROVIDERS["qnn"].add_to(None, None, "qnn:sm1")


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is not None, reason="the plugin is installed"
)
def test_a_missing_plugin_names_its_extra(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    package = export_checkpoint(checkpoint, tmp_path / "package", ("qnn:sm8650",))
    with pytest.raises(SessionError, match=r"pip install 'edgewright\[qnn\]'"):
        Session.open(package.root, "qnn:sm8650")


@pytest.mark.skipif(QNN_PYTHON is None, reason="EDGEWRIGHT_QNN_PYTHON names no Python")
@pytest.mark.parametrize("name", MODELS)
def test_the_htp_errs_like_torch(name: str, tmp_path: Path) -> None:
    """In float16, strictly placed: at most twice torch's error; its choices where it is sure."""
    checkpoint = zoo.write_checkpoint(name, tmp_path, "float16")
    package = export_checkpoint(checkpoint, tmp_path / "package", CHIPS)
    ids = zoo.prompt(name, TOKENS)
    rounded, exact = _by_torch(checkpoint, ids)
    allowed = 2 * zoo.error(rounded, exact)
    best = exact.topk(2).values
    sure = best[:, 0] - best[:, 1] > allowed * max(1.0, float(exact.std()))
    at_once = {chip: _run(package, chip, ids, tmp_path) for chip in CHIPS}
    _compile(package)
    for chip in CHIPS:
        ahead = _run(package, chip, ids, tmp_path)
        for found in (at_once[chip], ahead):
            assert zoo.error(found, exact) <= allowed
            assert bool((found.argmax(-1) == exact.argmax(-1))[sure].all())


@pytest.mark.skipif(QNN_PYTHON is None, reason="EDGEWRIGHT_QNN_PYTHON names no Python")
@pytest.mark.parametrize("name", MODELS)
def test_integers_are_the_processors(name: str, tmp_path: Path) -> None:
    """The same graphs on the HTP and here. What is left in float16 may err on either as the float16
    variant may."""
    checkpoint = zoo.write_checkpoint(name, tmp_path, "float16")
    here, chip = "cpu:w8a16", "qnn:sm8650-w8a16"
    with offered(replace(find_provider(chip), name=here)):
        package = export_checkpoint(checkpoint, tmp_path / "package", (here, chip), targets=())
    ids = zoo.prompt(name, TOKENS)
    session = Session.open(package.root, here)
    rows = [session.prefill([ids[:PROMPT]])[0], *(session.decode([t])[0] for t in ids[PROMPT:])]
    difference = zoo.error(_run(package, chip, ids, tmp_path), torch.from_numpy(np.stack(rows)))
    rounded, exact = _by_torch(checkpoint, ids)
    assert difference <= max(1e-2, 4 * zoo.error(rounded, exact))


def _by_torch(checkpoint: Path, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """In float16 and in float32, from the prompt's last token on."""
    exact = zoo.reference_logits(checkpoint, ids)[PROMPT - 1 :]
    with torch.no_grad():
        half = zoo.reference_model(checkpoint).half()
        rounded = half(torch.tensor([ids]), use_cache=False).logits[0].float()[PROMPT - 1 :]
    zoo.reference_model.cache_clear()
    return rounded, exact


def _run(package: Package, provider: str, ids: Sequence[int], folder: Path) -> torch.Tensor:
    assert QNN_PYTHON is not None
    out, listed = folder / "found.npy", ",".join(map(str, ids))
    subprocess.run(
        [QNN_PYTHON, "-c", _RUN, str(package.root), provider, listed, str(out), str(PROMPT)],
        check=True,
    )
    return torch.from_numpy(np.load(out))


def _compile(package: Package) -> None:
    assert QNN_PYTHON is not None
    command = [QNN_PYTHON, "-m", "edgewright.cli", "compile", str(package.root)]
    subprocess.run(command, check=True)
    opened = Package.open(package.root, verify=True)
    assert all(opened.manifest.variant(name.replace(":", "-")).compiled for name in CHIPS)
