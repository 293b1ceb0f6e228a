"""A node that a provider does not take: an error that names it, or a line of the manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgewright.artifacts.errors import ExportError
from edgewright.artifacts.package import Package
from edgewright.artifacts.summary import render, summarise
from edgewright.export import export_checkpoint
from edgewright.export.providers import find_provider
from edgewright.export.static import StaticShapes
from edgewright.runtime import Session
from tests import model_zoo as zoo
from tests.export.static_cpu import offered, static_cpu

_TAKEN = find_provider("qnn:sm8650").domains[""]
assert _TAKEN is not None
PICKY = replace(
    static_cpu("picky", StaticShapes(chunk=8, capacity=32, update="delta")),
    domains={"": (_TAKEN | {"Sigmoid"}) - {"Softmax"}},
)


def test_the_export_fails_and_names_it(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    with offered(PICKY) as (name,), pytest.raises(ExportError) as error:
        export_checkpoint(checkpoint, tmp_path / "package", (name,))
    said = str(error.value)
    assert said.startswith("provider cpu:picky does not take") and "(Softmax)" in said
    assert "--allow-fallback" in said and "\n" not in said
    assert not (tmp_path / "package").exists()


def test_where_it_is_allowed_the_manifest_lists_it(tmp_path: Path) -> None:
    checkpoint = zoo.write_checkpoint("llama", tmp_path)
    with offered(PICKY) as (name,):
        root = export_checkpoint(
            checkpoint, tmp_path / "package", ("cpu-portable", name), allow_fallback=True
        ).root
    package = Package.open(root)
    portable, picky = package.manifest.variants
    assert portable.fallback == {}
    assert set(picky.fallback) == {"prefill", "decode"}
    assert all(node.endswith(" (Softmax)") for nodes in picky.fallback.values() for node in nodes)
    assert "decode: left to the processor, 3 nodes: " in render(summarise(package))
    ids = zoo.prompt("llama", 11)
    found = torch.from_numpy(Session.open(root, name).logits(ids))
    assert zoo.error(found, zoo.reference_logits(checkpoint, ids)) <= 1e-4
