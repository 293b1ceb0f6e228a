"""OpenVINO on the processor: every node placed there, and right."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from edgewright.export import export_checkpoint
from tests import model_zoo as zoo

# A Python with the runtime's needs and onnxruntime-openvino, which is another onnxruntime.
OPENVINO_PYTHON = os.environ.get("EDGEWRIGHT_OPENVINO_PYTHON")
MODELS = ["llama", "minicpm3", "mamba", "bamba", "qwen3.5-text"]
TOKENS, PROMPT = 20, 13
TOLERANCE = 1e-4

_RUN = """
import sys, numpy as np
from edgewright.runtime import Session
package, ids, out, prompt = sys.argv[1:]
ids, prompt = [int(token) for token in ids.split(",")], int(prompt)
session = Session.open(package, "openvino")
rows = [session.prefill([ids[:prompt]])[0], *(session.decode([t])[0] for t in ids[prompt:])]
np.save(out, np.stack(rows))
"""


@pytest.mark.skipif(OPENVINO_PYTHON is None, reason="EDGEWRIGHT_OPENVINO_PYTHON names no Python")
@pytest.mark.parametrize("name", MODELS)
def test_openvino_equals_transformers(name: str, tmp_path: Path) -> None:
    assert OPENVINO_PYTHON is not None
    checkpoint = zoo.write_checkpoint(name, tmp_path)
    package = export_checkpoint(checkpoint, tmp_path / "package", ("openvino",))
    ids, out = zoo.prompt(name, TOKENS), tmp_path / "found.npy"
    listed = ",".join(map(str, ids))
    subprocess.run(
        [OPENVINO_PYTHON, "-c", _RUN, str(package.root), listed, str(out), str(PROMPT)],
        check=True,
    )
    exact = zoo.reference_logits(checkpoint, ids)[PROMPT - 1 :]
    found = torch.from_numpy(np.load(out))
    assert zoo.error(found, exact) <= TOLERANCE
    assert bool((found.argmax(-1) == exact.argmax(-1)).all())
