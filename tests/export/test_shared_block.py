"""A block that layers share: its weights are stored once, each layer has its own states."""

from __future__ import annotations

from pathlib import Path

from edgewright.export.exporter import canonical_graph
from edgewright.model.loading import open_model
from tests import model_zoo as zoo


def test_a_shared_block_is_stored_once(tmp_path: Path) -> None:
    model = open_model(zoo.write_checkpoint("zamba2", tmp_path))
    graph = canonical_graph(model)
    part = "mixer.block.query.weight"
    stored = {name for name in graph.model.graph.initializers if name.endswith(part)}
    assert stored == {f"layers.{home}.{part}" for home in (1, 2)}
    assert stored == {name for name in model.weights if name.endswith(part)}
    keys = {spec.name for spec in graph.layout if spec.name.endswith(".key")}
    assert keys == {f"layers.{layer}.key" for layer in (1, 2, 4)}
