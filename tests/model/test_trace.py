"""Tracing: each kind of decoder becomes one graph for every batch, length and capacity."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from edgewright.export.trace import capture
from edgewright.model.loading import open_model
from tests import model_zoo as zoo
from tests.model.running import run_in_chunks

# Between them: every wiring, norm, mixer variant, feed-forward half and kind of rotation.
# The ops that each calls beside block_matmul.
OPS: dict[str, set[str]] = {
    "llama-dynamic": {"cached_attention"},
    "phi3-longrope": {"cached_attention"},
    "gemma3": {"cached_attention"},
    "olmo2": {"cached_attention"},
    "cohere2": {"cached_attention"},
    "granite": {"cached_attention"},
    "qwen3-moe-sparse": {"cached_attention", "routed_experts"},
    "gpt-oss": {"cached_attention", "routed_experts"},
    "deepseek-v3": {"latent_attention", "routed_experts"},
    "qwen3-next": {"cached_attention", "causal_conv", "gated_delta", "routed_experts"},
    "kimi-linear": {"latent_attention", "causal_conv", "gated_delta", "routed_experts"},
    "jamba": {"cached_attention", "causal_conv", "routed_experts", "selective_scan"},
    "bamba": {"cached_attention", "causal_conv", "state_space_dual"},
    "recurrent-gemma": {"cached_attention", "causal_conv", "selective_scan"},
    "lfm2": {"cached_attention", "causal_conv"},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traced")


def _sizes(program: ExportedProgram) -> list[list[str]]:
    """The dimensions of every user input, each a number or a symbol."""
    names = set(program.graph_signature.user_inputs)
    return [
        [str(size) for size in node.meta["val"].shape]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]


@pytest.mark.parametrize("name", OPS)
def test_one_graph_for_all_sizes(name: str, checkpoints: Path) -> None:
    model = open_model(zoo.write_checkpoint(name, checkpoints))
    program = capture(model.decoder)
    ids, start, length, wanted, *states = _sizes(program)
    batch = ids[0]
    assert not any(size.isdigit() for size in (*ids, *wanted))
    assert start == length == [batch]
    assert wanted[0] == batch and wanted[1] not in ids
    open_sizes = {"batch": {batch}, "capacity": set[str]()}
    for sizes, spec in zip(states, model.decoder.layout, strict=True):
        for size, given in zip(sizes, spec.shape, strict=True):
            if isinstance(given, int):
                assert size == str(given)
            else:
                open_sizes[given].add(size)
    assert open_sizes["batch"] == {batch}
    assert len(open_sizes["capacity"]) == 1 and not open_sizes["capacity"].pop().isdigit()
    called = {
        node.target.name().split("::")[1].removesuffix(".default")
        for node in program.graph.nodes
        if getattr(node.target, "namespace", "") == "edgewright"
    }
    assert called == OPS[name] | {"block_matmul"}
    _assert_no_weight_was_read(program)


def _assert_no_weight_was_read(program: ExportedProgram) -> None:
    assert {value.device.type for value in program.state_dict.values()} == {"meta"}


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral", "olmo-hybrid"])
def test_nodes_do_not_grow_with_heads_or_experts(name: str, checkpoints: Path) -> None:
    """A layer is a few tens of nodes; a loop over experts or heads would be hundreds."""
    model = open_model(zoo.write_checkpoint(name, checkpoints))
    program = capture(model.decoder)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) < 40 + 45 * len(model.config.layers)


def test_rows_of_different_lengths_do_not_touch(checkpoints: Path) -> None:
    """Padding on the right: each row of a batch gets what it gets alone, and its state no more."""
    decoder = open_model(zoo.write_checkpoint("qwen3", checkpoints)).materialise()
    prompts = [zoo.prompt("qwen3", 9), zoo.prompt("qwen3", 4), []]
    states = [torch.zeros(spec.resolve(3, 12)) for spec in decoder.layout]
    ids = torch.tensor([p + [5] * (9 - len(p)) for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    last = (lengths - 1).clamp(min=0)[:, None]
    with torch.no_grad():
        logits, after = decoder(ids, torch.zeros(3, dtype=torch.int64), lengths, last, states)
    for row, prompt in enumerate(prompts[:2]):
        alone = run_in_chunks(decoder, prompt, [len(prompt)])[-1:]
        assert zoo.error(logits[row], alone) <= zoo.TOLERANCE
    for state in after:
        assert all(not state[row, :, len(p) :].any() for row, p in enumerate(prompts))
