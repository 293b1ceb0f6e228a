"""Static graphs in standard ops alone, on the CPU: every mixer against transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewright.export import export_checkpoint
from edgewright.export.providers import Provider, find_provider
from edgewright.export.static import StaticShapes
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.export.static_cpu import offered, static_cpu
from tests.parity.check_package import check

FULL = static_cpu("full", StaticShapes(chunk=16, capacity=60))
DELTA = static_cpu("delta", StaticShapes(chunk=16, capacity=60, update="delta"))
HALF = static_cpu("half", StaticShapes(chunk=16, capacity=60, dtype="float16", update="delta"))

_COREML = find_provider("coreml")
assert _COREML.static is not None
# Its graphs, and no node that it would not take: on the processor, as there is no Mac.
COREML = replace(_COREML, name="cpu:coreml", static=replace(_COREML.static, chunk=16, capacity=60))

# One of each mixer, of each way to route, and of each way to place positions.
EXACT = [
    "llama",
    "gemma2",
    "gpt-oss",
    "llama-dynamic",
    "deepseek-v3",
    "minicpm3",
    "mamba",
    "bamba",
    "mamba2-grouped",
    "jamba",
    "qwen3-next",
    "kimi-linear",
    "recurrent-gemma",
    "lfm2",
    "zamba2",
]
ROUNDED = ["llama", "minicpm3", "mamba", "bamba", "qwen3.5-text"]
LENGTHS = (1, 17, 41)
GREEDY_TOKENS = 12


@pytest.mark.parametrize("name", EXACT)
def test_float32_equals_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint(name, tmp_path)
    with offered(FULL, DELTA) as providers:
        package = export_checkpoint(checkpoint, tmp_path / "package", providers)
    expected = _expected(name, checkpoint)
    for provider in providers:
        session = Session.open(package.root, provider)
        assert session.context_limit == 60
        assert check(session, expected) == []


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("half", [HALF, COREML], ids=["plain", "coreml"])
def test_float16_errs_like_torch(half: Provider, name: str, tmp_path: Path) -> None:
    """At most twice torch's own error in float16; the same choice where that cannot change it."""
    checkpoint = zoo.write_checkpoint(name, tmp_path, "float16")
    with offered(half) as (provider,):
        package = export_checkpoint(checkpoint, tmp_path / "package", (provider,))
    ids = zoo.prompt(name, 41)
    exact = zoo.reference_logits(checkpoint, ids)
    with torch.no_grad():
        model = zoo.reference_model(checkpoint).half()
        rounded = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    zoo.reference_model.cache_clear()
    session = Session.open(package.root, provider)
    assert {spec.dtype for spec in package.manifest.variants[0].states} == {"float16"}
    allowed = 2 * zoo.error(rounded, exact)
    best = exact.topk(2).values
    sure = best[:, 0] - best[:, 1] > allowed * max(1.0, float(exact.std()))
    for run in (session.logits(ids), session.logits(ids, chunk=7), session.logits(ids, chunk=1)):
        found = torch.from_numpy(run)
        assert zoo.error(found, exact) <= allowed
        assert bool((found.argmax(-1) == exact.argmax(-1))[sure].all())


def _expected(name: str, checkpoint: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"lengths": np.array(LENGTHS)}
    for length in LENGTHS:
        ids = zoo.prompt(name, length)
        arrays[f"{length}.ids"] = np.array(ids)
        arrays[f"{length}.at_once"] = zoo.reference_logits(checkpoint, ids).numpy()
    ids = zoo.prompt(name, 17)
    for _ in range(GREEDY_TOKENS):
        ids.append(int(zoo.reference_logits(checkpoint, ids)[-1].argmax()))
    arrays["greedy.prompt"], arrays["greedy.tokens"] = np.array(ids[:17]), np.array(ids[17:])
    return arrays
