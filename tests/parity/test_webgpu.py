"""WebGPU itself, where a Python has it: strictly placed, in float16 and in float32."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgewright.export import export_checkpoint
from tests import model_zoo as zoo
from tests.parity.elsewhere import PROMPT, TOKENS, check_half, logits_from

# A Python with the runtime's needs and onnxruntime-webgpu, where there is an adapter with float16.
WEBGPU_PYTHON = os.environ.get("EDGEWRIGHT_WEBGPU_PYTHON")
MODELS = ["llama", "minicpm3", "mamba", "bamba", "qwen3.5-text"]

pytestmark = pytest.mark.skipif(
    WEBGPU_PYTHON is None, reason="EDGEWRIGHT_WEBGPU_PYTHON names no Python"
)


@pytest.mark.parametrize("name", MODELS)
def test_webgpu_errs_like_torch(name: str, tmp_path: Path) -> None:
    assert WEBGPU_PYTHON is not None
    checkpoint = zoo.write_checkpoint(name, tmp_path, "float16")
    package = export_checkpoint(checkpoint, tmp_path / "package", ("webgpu", "webgpu:f32"))
    ids = zoo.prompt(name, TOKENS)
    exact = zoo.reference_logits(checkpoint, ids)[PROMPT - 1 :]
    out = tmp_path / "found.npy"
    single = logits_from(WEBGPU_PYTHON, package.root, "webgpu:f32", ids, out)
    assert zoo.error(single, exact) <= zoo.TOLERANCE
    check_half(logits_from(WEBGPU_PYTHON, package.root, "webgpu", ids, out), checkpoint, ids)
