"""A package and a Python with another ONNX Runtime go in; that one's logits come out, and whether
they err more than float16 may."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests import model_zoo as zoo

TOKENS, PROMPT = 20, 13

_RUN = """
import sys, numpy as np
from edgewright.runtime import Session
package, provider, ids, out, prompt = sys.argv[1:]
ids, prompt = [int(token) for token in ids.split(",")], int(prompt)
session = Session.open(package, provider)
rows = [session.prefill([ids[:prompt]])[0], *(session.decode([t])[0] for t in ids[prompt:])]
np.save(out, np.stack(rows))
"""


def logits_from(python: str, package: Path, provider: str, ids: list[int], out: Path) -> Tensor:
    """After the prompt and after each token that follows it. A process of its own, as what runs
    there may end it."""
    listed = ",".join(map(str, ids))
    command = [python, "-c", _RUN, str(package), provider, listed, str(out), str(PROMPT)]
    subprocess.run(command, check=True)
    return torch.from_numpy(np.load(out))


def check_half(found: Tensor, checkpoint: Path, ids: list[int]) -> None:
    """At most twice torch's own error in float16; the same choice where that cannot change it."""
    exact = zoo.reference_logits(checkpoint, ids)[PROMPT - 1 :]
    with torch.no_grad():
        half = zoo.reference_model(checkpoint).half()
        rounded = half(torch.tensor([ids]), use_cache=False).logits[0].float()[PROMPT - 1 :]
    zoo.reference_model.cache_clear()
    allowed = 2 * zoo.error(rounded, exact)
    assert zoo.error(found, exact) <= allowed
    best = exact.topk(2).values
    sure = best[:, 0] - best[:, 1] > allowed * max(1.0, float(exact.std()))
    assert bool((found.argmax(-1) == exact.argmax(-1))[sure].all())
