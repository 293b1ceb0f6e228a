"""Keys that transformers does not read: a config means the same whatever they say."""

from __future__ import annotations

from typing import Any

import pytest

from edgewright.model.architectures import load_config
from tests.model.published_delta import DELTA
from tests.model.published_hybrids import HYBRIDS
from tests.model.published_latent import LATENT
from tests.model.published_state_space import STATE_SPACE

PUBLISHED: dict[str, dict[str, Any]] = {**LATENT, **STATE_SPACE, **HYBRIDS, **DELTA}
IGNORED: dict[str, dict[str, Any]] = {
    "DeepSeek-V2": {"norm_topk_prob": True, "moe_layer_freq": 2, "scoring_func": "sigmoid"},
    "DeepSeek-V3": {"topk_method": "greedy", "moe_layer_freq": 2, "scoring_func": "softmax"},
    "GLM-4.7-Flash": {"first_k_dense_replace": 2, "topk_method": "greedy"},
    "Youtu-LLM-2B": {"mlp_bias": True},
    "mamba-1.4b-hf": {"rms_norm": False},
    "Jamba-v0.1": {"mamba_inner_layernorms": False, "sliding_window": 8},
    "granite-4.0-h-tiny": {"normalization_function": "layernorm"},
    "Nemotron-H-8B-Base-8K": {"attention_bias": True},
    "LFM2-1.2B": {"theta": 10000.0, "block_use_swiglu": False, "use_pos_enc": False},
    "Falcon-H1-0.5B-Instruct": {"attn_layer_indices": [0], "mamba_use_mlp": False},
    "Kimi-Linear-48B-A3B-Instruct": {"mla_use_nope": False, "moe_layer_freq": 2},
    "Olmo-Hybrid-7B": {"linear_use_gate": False},
    "Qwen3-Next-80B-A3B-Instruct": {"attn_output_gate": False, "use_sliding_window": True},
}


@pytest.mark.parametrize("name", IGNORED)
def test_what_transformers_does_not_read_changes_nothing(name: str) -> None:
    assert load_config({**PUBLISHED[name], **IGNORED[name]}) == load_config(PUBLISHED[name])


def test_a_name_for_experts_that_transformers_takes_too() -> None:
    config = PUBLISHED["Kimi-Linear-48B-A3B-Instruct"]
    other = {key: value for key, value in config.items() if key != "num_experts"}
    assert load_config({**other, "num_local_experts": config["num_experts"]}) == load_config(config)


def test_how_much_turns_is_said_by_the_rotations_own_section() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    config = {**PUBLISHED["LFM2-1.2B"], "rope_parameters": rope}
    assert load_config({**config, "partial_rotary_factor": 0.5}) == load_config(config)
