"""The functions that packages carry."""

from __future__ import annotations

import os
import subprocess
import sys

from edgewright.custom_ops import OPS

ALL_FUNCTIONS = """
import hashlib, importlib.util
import onnx_ir as ir
from edgewright.custom_ops import OPS
from edgewright.custom_ops.onnx_functions import function_for

for name in sorted(OPS):
    for overload in ("", "packed"):
        module = f"edgewright.custom_ops.{OPS[name].function}.packed_body"
        if overload and importlib.util.find_spec(module) is None:
            continue
        proto = ir.serde.serialize_function(function_for(name, overload))
        print(name, overload, hashlib.sha256(proto.SerializeToString()).hexdigest())
"""


def test_every_run_makes_the_same_functions() -> None:
    """Whatever order sets have in it: what is exported twice has the same bytes."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", ALL_FUNCTIONS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in "123"
    ]
    made = {run.communicate()[0] for run in runs}
    assert len(made) == 1
    assert len(made.pop().splitlines()) >= len(OPS)
