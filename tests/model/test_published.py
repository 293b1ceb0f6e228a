"""Checkpoints in the form they are published in: key by key and name by name what was saved."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.loading import LazyModel, open_model
from tests import model_zoo as zoo
from tests.model.published_configs import PUBLISHED
from tests.model.published_delta import DELTA
from tests.model.published_hybrids import HYBRIDS
from tests.model.published_latent import LATENT
from tests.model.published_state_space import STATE_SPACE
from tests.model.running import run_in_chunks
from tests.random_model import save_random_model

Tensors = dict[str, Tensor]
ALL = PUBLISHED | DELTA | HYBRIDS | LATENT | STATE_SPACE


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.mark.parametrize("name", ALL)
def test_published_configs_mean_what_transformers_takes_them_for(name: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    published = json.dumps(ALL[name])
    config.write_text(published)
    save_random_model(AutoConfig.from_pretrained(tmp_path), tmp_path, seed=name)
    # transformers wrote its own form of the config over the published one.
    config.write_text(published)
    ids = torch.randint(3, 503, (100,), generator=torch.Generator().manual_seed(7)).tolist()
    found = run_in_chunks(open_model(tmp_path).materialise(), ids, [100])
    assert zoo.error(found, zoo.reference_logits(tmp_path, ids)) <= zoo.TOLERANCE


def _rename(pattern: str, replacement: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, replacement, n): t for n, t in tensors.items()}


def _fuse_experts(tensors: Tensors) -> Tensors:
    """As transformers holds them in memory."""
    fused = {n: t for n, t in tensors.items() if ".experts." not in n}
    for experts in {n.split(".experts.")[0] + ".experts" for n in tensors if ".experts." in n}:
        count = len([n for n in tensors if re.fullmatch(rf"{experts}\.\d+\.up_proj.weight", n)])
        gate, up, down = (
            torch.stack([tensors[f"{experts}.{e}.{part}_proj.weight"] for e in range(count)])
            for part in ("gate", "up", "down")
        )
        fused |= {f"{experts}.gate_up_proj": torch.cat((gate, up), 1), f"{experts}.down_proj": down}
    return fused


def _as_granite_in_memory(tensors: Tensors) -> Tensors:
    names = {
        r"moe\.input_linear\.weight": "moe.experts.gate_up_proj",
        r"moe\.output_linear\.weight": "moe.experts.down_proj",
        r"moe\.router\.layer\.weight": "moe.router.weight",
    }
    for pattern, name in names.items():
        tensors = _rename(pattern, name)(tensors)
    return tensors


def _with_inert_buffers(tensors: Tensors) -> Tensors:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    return tensors | {name: torch.ones(7)}


def _with_its_own_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def _with_a_layer_ahead(tensors: Tensors) -> Tensors:
    """Another layer after the last of three, and what joins it to the others."""
    last = {n: t for n, t in tensors.items() if n.startswith("model.layers.2.")}
    ahead = {name.replace("layers.2.", "layers.3.", 1): t.clone() for name, t in last.items()}
    own = ("eh_proj", "enorm", "hnorm", "embed_tokens", "shared_head.norm", "shared_head.head")
    return tensors | ahead | {f"model.layers.3.{part}.weight": torch.ones(2) for part in own}


def _with_more_to_guess_and_see(tensors: Tensors) -> Tensors:
    """What transformers leaves out of a text decoder, beside the text."""
    inner = _rename(r"^model\.", "model.language_model.")(tensors)
    names = ("mtp.layers.0.mlp.up_proj.weight", "mtp.fc.weight", "model.visual.merger.norm.weight")
    return inner | {name: torch.ones(2) for name in names}


def _as_olmo_in_memory(tensors: Tensors) -> Tensors:
    """Queries, keys and values in one convolution, and norms named as in other models."""
    layers = {n.split(".q_conv1d.")[0] for n in tensors if ".q_conv1d." in n}
    joined = {
        f"{layer}.conv1d.weight": torch.cat([tensors[f"{layer}.{x}_conv1d.weight"] for x in "qkv"])
        for layer in layers
    }
    kept = joined | {n: t for n, t in tensors.items() if "_conv1d." not in n}
    kept = _rename(r"\.attention_layer_norm\.", ".input_layernorm.")(kept)
    return _rename(r"\.feedforward_layer_norm\.", ".post_attention_layernorm.")(kept)


REWRITES: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "old llama with rotary buffers": ("llama", _with_inert_buffers),
    "tied head stored too": ("qwen2", _with_its_own_head),
    "tied head stored alone": ("qwen2", _rename(r"^model\.embed_tokens", "lm_head")),
    "body alone, as Qwen3-Embedding": ("qwen3", _rename(r"^model\.", "")),
    "text of a multimodal gemma 3": ("gemma3", _rename("^", "language_model.")),
    "mixtral as its modules are named": ("mixtral", _rename(r"\.block_sparse_moe\.", ".mlp.")),
    "experts fused": ("qwen3-moe", _fuse_experts),
    "jamba's experts fused": ("jamba", _fuse_experts),
    "granite's experts as its modules are named": ("granite-hybrid", _as_granite_in_memory),
    "body of mamba2 alone": ("mamba2-grouped", _rename(r"^backbone\.", "")),
    "experts fused, beside shared ones": ("deepseek-v3", _fuse_experts),
    "with a layer that guesses further ahead": ("deepseek-v3", _with_a_layer_ahead),
    "qwen3-next's experts fused": ("qwen3-next", _fuse_experts),
    "text of what sees and guesses ahead": ("qwen3.5-text", _with_more_to_guess_and_see),
    "olmo-hybrid as its modules are named": ("olmo-hybrid", _as_olmo_in_memory),
    "kimi-linear's dense layer as published": (
        "kimi-linear",
        _rename(r"\.0\.block_sparse_moe\.", ".0.mlp."),
    ),
    "glm with a layer that guesses further ahead": ("glm4-moe-lite", _with_a_layer_ahead),
}


@pytest.mark.parametrize("case", REWRITES)
def test_other_names_for_the_same_weights(case: str, checkpoints: Path, tmp_path: Path) -> None:
    name, rewrite = REWRITES[case]
    path = zoo.write_checkpoint(name, checkpoints)
    shutil.copy(path / "config.json", tmp_path)
    tensors = rewrite(load_file(path / "model.safetensors"))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _assert_same(open_model(tmp_path), open_model(path))


def _assert_same(found: LazyModel, expected: LazyModel) -> None:
    assert found.config == expected.config
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert torch.equal(found.weights[name].read(), tensor.read()), name


def test_a_head_that_differs_is_not_tied(checkpoints: Path, tmp_path: Path) -> None:
    path = zoo.write_checkpoint("qwen2", checkpoints)
    shutil.copy(path / "config.json", tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = zoo.prompt("qwen2", 9)
    found = run_in_chunks(open_model(tmp_path).materialise(), ids, [9])
    assert zoo.error(found, zoo.reference_logits(tmp_path, ids)) <= zoo.TOLERANCE
    assert zoo.error(found, zoo.reference_logits(path, ids)) > 1


def test_gpt_oss_as_published_in_mxfp4(tmp_path: Path) -> None:
    """The same experts packed, and plain as transformers unpacks them."""
    published = {**PUBLISHED["gpt-oss-20b"], "intermediate_size": 32, "hidden_size": 64}
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    config = AutoConfig.for_model(**published)
    save_random_model(config, plain, seed="mxfp4", dtype="bfloat16")
    tensors = load_file(plain / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    blocks: Tensors = {}
    for name in [n for n in tensors if n.endswith("_proj") and ".experts." in n]:
        experts, inputs, outputs = tensors[name].shape
        shape = (experts, outputs, inputs // 32, 16)
        blocks[f"{name}_blocks"] = torch.randint(
            0, 256, shape, dtype=torch.uint8, generator=generator
        )
        scales = torch.randint(121, 126, shape[:3], dtype=torch.uint8, generator=generator)
        blocks[f"{name}_scales"] = scales
        unpacked = convert_moe_packed_tensors(blocks[f"{name}_blocks"], scales)
        assert unpacked.shape == tensors[name].shape
        tensors[name] = unpacked.contiguous()
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    packed.mkdir()
    rest = {n: t for n, t in tensors.items() if f"{n}_blocks" not in blocks}
    save_file(rest | blocks, packed / "model.safetensors", metadata={"format": "pt"})
    quantised = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    written = json.dumps({**published, "quantization_config": quantised})
    (packed / "config.json").write_text(written)
    (plain / "config.json").write_text(json.dumps(published))
    _assert_same(open_model(packed), open_model(plain))
    ids = list(range(3, 33))
    found = run_in_chunks(open_model(packed).materialise(), ids, [30])
    assert zoo.error(found, zoo.reference_logits(plain, ids)) <= zoo.TOLERANCE


def test_deepseek_v3_as_published_in_fp8(tmp_path: Path) -> None:
    """Matrices in blocks, with a layer more that guesses ahead, and plain as transformers has them;
    the router and its correction are never in blocks."""
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    config, block = LATENT["DeepSeek-V3"], [16, 16]
    save_random_model(AutoConfig.for_model(**config), plain, seed="fp8")
    tensors = _with_a_layer_ahead(load_file(plain / "model.safetensors"))
    in_blocks: Tensors = {}
    generator = torch.Generator().manual_seed(5)
    for name in [n for n in tensors if re.search(r"_proj(_with_mqa)?\.weight$", n)]:
        grid = [-(-size // 16) for size in tensors[name].shape]
        if len(grid) == 1:
            continue
        weight = (tensors[name] * 100).to(torch.float8_e4m3fn)
        scales = torch.rand(grid, generator=generator) * 0.01 + 0.005
        in_blocks |= {name: weight, f"{name}_scale_inv": scales}
        tensors[name] = _dequantize_fp8_weight(weight, scales, block, torch.float32)
    packed.mkdir()
    save_file(tensors | in_blocks, packed / "model.safetensors", metadata={"format": "pt"})
    kept = {n: t for n, t in tensors.items() if not n.startswith("model.layers.3.")}
    save_file(kept, plain / "model.safetensors", metadata={"format": "pt"})
    quantised = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": block,
    }
    written = json.dumps({**config, "quantization_config": quantised})
    (packed / "config.json").write_text(written)
    (plain / "config.json").write_text(json.dumps(config))
    _assert_same(open_model(packed), open_model(plain))
    ids = list(range(3, 33))
    found = run_in_chunks(open_model(packed).materialise(), ids, [30])
    assert zoo.error(found, zoo.reference_logits(plain, ids)) <= zoo.TOLERANCE


def _without(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: t for n, t in tensors.items() if not re.search(pattern, n)}


def _cut(name: str, rows: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][:rows].contiguous()}


LAYER = "model.layers.1"
SPOILED: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "missing": (
        "llama",
        _without(rf"{LAYER}\.mlp\.up"),
        f"tensor {LAYER}.mlp.up_proj.weight is missing",
    ),
    "missing head": ("llama", _without("lm_head"), "tensor lm_head.weight is missing"),
    "missing expert": (
        "mixtral",
        _without(rf"{LAYER}.*experts\.4\.w3"),
        f"tensor {LAYER}.block_sparse_moe.experts.4.w3.weight is missing",
    ),
    "extra": (
        "llama",
        lambda tensors: tensors | {"model.layers.9.mlp.up_proj.weight": torch.ones(2)},
        "tensor model.layers.9.mlp.up_proj.weight is in the checkpoint",
    ),
    "an extra layer that guesses nothing ahead": (
        "deepseek-v3",
        lambda tensors: tensors | {"model.layers.3.input_layernorm.weight": torch.ones(2)},
        "tensor model.layers.3.input_layernorm.weight is in the checkpoint",
    ),
    "misshapen correction": (
        "glm4-moe-lite",
        _cut(f"{LAYER}.mlp.gate.e_score_correction_bias", 5),
        rf"tensor {LAYER}.mlp.gate.e_score_correction_bias has shape \[5\]",
    ),
    "misshapen latents": (
        "minicpm3",
        _cut(f"{LAYER}.self_attn.kv_b_proj.weight", 80),
        rf"tensor {LAYER}.self_attn.kv_b_proj.weight has shape \[80, 20\]",
    ),
    "a bias the config denies": (
        "llama",
        lambda tensors: tensors | {f"{LAYER}.self_attn.q_proj.bias": torch.ones(84)},
        f"tensor {LAYER}.self_attn.q_proj.bias is in the checkpoint",
    ),
    "misshapen": (
        "llama",
        _cut(f"{LAYER}.self_attn.q_proj.weight", 80),
        rf"tensor {LAYER}.self_attn.q_proj.weight has shape \[80, 60\].* requires \[84, 60\]",
    ),
    "misshapen fused rows": (
        "phi3",
        _cut(f"{LAYER}.self_attn.qkv_proj.weight", 50),
        rf"tensor {LAYER}.self_attn.qkv_proj.weight has shape \[50, 60\]",
    ),
    "misshapen expert": (
        "qwen3-moe",
        _cut(f"{LAYER}.mlp.experts.2.up_proj.weight", 20),
        f"{LAYER}.mlp.experts.2.up_proj.weight",
    ),
    "misshapen decays": (
        "mamba",
        _cut("backbone.layers.1.mixer.A_log", 100),
        r"tensor backbone.layers.1.mixer.A_log has shape \[16, 100\].* requires \[16, 120\]",
    ),
    "misshapen convolution": (
        "mamba2",
        _cut("backbone.layers.1.mixer.conv1d.weight", 150),
        r"tensor backbone.layers.1.mixer.conv1d.weight has shape \[4, 150\]",
    ),
    "a convolution's bias the config denies": (
        "mamba-biased",
        lambda tensors: tensors | {"backbone.layers.1.mixer.conv1d.bias": torch.ones(180)},
        "tensor backbone.layers.1.mixer.conv1d.bias is in the checkpoint",
    ),
    "misshapen sinks": (
        "gpt-oss",
        _cut(f"{LAYER}.self_attn.sinks", 5),
        rf"tensor {LAYER}.self_attn.sinks has shape \[5\]",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_weights_that_do_not_fit_are_named(case: str, checkpoints: Path, tmp_path: Path) -> None:
    name, spoil, message = SPOILED[case]
    path = zoo.write_checkpoint(name, checkpoints)
    shutil.copy(path / "config.json", tmp_path)
    save_file(spoil(load_file(path / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        open_model(tmp_path)
    assert "\n" not in str(caught.value)
