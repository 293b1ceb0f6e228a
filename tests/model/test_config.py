"""config.json: what is read, what is known to be inert, and the one line that refuses the rest."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

import edgewright.export.validate.latent_hybrid  # noqa: F401 - transformers then knows the type
from edgewright.artifacts.errors import ConfigError
from edgewright.model.architectures import known_architectures, load_config
from edgewright.model.config import MlpSpec
from tests import model_zoo as zoo
from tests.model.published_configs import PUBLISHED
from tests.model.published_delta import DELTA
from tests.model.published_latent import LATENT
from tests.model.published_state_space import STATE_SPACE

LLAMA = PUBLISHED["Llama-3.2-1B"]
ROPE = LLAMA["rope_scaling"]


def _with(model: str, **changes: Any) -> dict[str, Any]:
    return {**PUBLISHED[model], **changes}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model_type": ({"hidden_size": 8}, "'model_type' is missing"),
    "unknown model_type": (_with("Llama-3.2-1B", model_type="gpt2"), "'gpt2' is not known; known"),
    "model_type not a name": (_with("Llama-3.2-1B", model_type=["llama"]), "is not known"),
    "a path for a model_type": (_with("Llama-3.2-1B", model_type="../llama"), "is not known"),
    "unknown key": (_with("Llama-3.2-1B", attn_temperature=2), "unknown key 'attn_temperature'"),
    "another family's key": (
        _with("Llama-3.2-1B", layer_types=["full_attention"] * 4),
        "unknown key 'layer_types'",
    ),
    "missing size": (
        {key: value for key, value in LLAMA.items() if key != "hidden_size"},
        "'hidden_size' is missing",
    ),
    "size of another type": (_with("Llama-3.2-1B", hidden_size="64"), "'hidden_size' is '64'"),
    "size true": (_with("Llama-3.2-1B", vocab_size=True), "'vocab_size' is True"),
    "zero heads": (_with("Llama-3.2-1B", num_attention_heads=0), "'num_attention_heads' is 0"),
    "negative layers": (_with("Llama-3.2-1B", num_hidden_layers=-1), "'num_hidden_layers' is -1"),
    "endless layers": (_with("Llama-3.2-1B", num_hidden_layers=10**9), "from 1 to 4096"),
    "endless vocabulary": (_with("Llama-3.2-1B", vocab_size=10**300), "'vocab_size' is 1000"),
    "heads over kv heads": (
        _with("Llama-3.2-1B", num_key_value_heads=3),
        "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
    ),
    "heads that do not divide": (
        _with("Llama-2-7b-hf", num_attention_heads=6),
        "hidden_size 64 is not a multiple of num_attention_heads 6",
    ),
    "odd rotation": (_with("Llama-3.2-1B", head_dim=15), "15 values of each head"),
    "number not a number": (_with("Llama-3.2-1B", rms_norm_eps="1e-5"), "required: a number"),
    "no epsilon": (_with("Llama-3.2-1B", rms_norm_eps=0), "a number above 0"),
    "number float32 cannot hold": (_with("Llama-3.2-1B", rope_theta=10**400), "a number"),
    "unknown activation": (_with("Llama-3.2-1B", hidden_act="mish"), "required: one of gelu"),
    "switch not a switch": (_with("Llama-3.2-1B", mlp_bias="no"), "required: true or false"),
    "partial rotation": (
        _with("Llama-3.2-1B", partial_rotary_factor=0.5),
        "'partial_rotary_factor' is 0.5",
    ),
    "unknown rotation": (
        _with("Llama-3.2-1B", rope_scaling={"rope_type": "mrope"}),
        "unknown rotary scaling 'mrope'",
    ),
    "unknown rotary key": (
        _with("Llama-3.2-1B", rope_scaling={**ROPE, "mrope_section": [1]}),
        "config.json, rope_scaling: unknown key 'mrope_section'",
    ),
    "rotation without its factor": (
        _with("Llama-3.2-1B", rope_scaling={"rope_type": "linear"}),
        "rotary scaling needs 'factor'",
    ),
    "factor of nothing": (
        _with("Llama-3.2-1B", rope_scaling={"rope_type": "linear", "factor": 0}),
        "'factor' above 0",
    ),
    "bands the wrong way round": (
        _with("Llama-3.2-1B", rope_scaling={**ROPE, "low_freq_factor": 8.0}),
        "high_freq_factor 4.0 is not above low_freq_factor 8.0",
    ),
    "frequencies without end": (
        _with(
            "Phi-3.5-mini-instruct",
            rope_scaling={"type": "su", "short_factor": [0.0] * 8, "long_factor": [1.0] * 8},
        ),
        "frequencies beyond float32",
    ),
    "rotation a list": (_with("Llama-3.2-1B", rope_scaling=[1]), "required: an object"),
    "rotation by layer": (
        _with("Qwen3-0.6B", rope_parameters={"full_attention": {"rope_type": "default"}}),
        "unknown key 'full_attention'",
    ),
    "longrope of the wrong length": (
        _with("Phi-3.5-mini-instruct", rope_scaling={"type": "su", "short_factor": [1.0]}),
        "'short_factor' has 1 numbers, 8 are required",
    ),
    "phi3 rotation it does not know": (
        _with("Phi-3.5-mini-instruct", rope_scaling={"type": "linear", "factor": 2.0}),
        "required: default or longrope",
    ),
    "phi3 biases": (_with("Phi-4-mini-instruct", lm_head_bias=True), "'lm_head_bias' is True"),
    "layer_types too short": (
        _with("gemma-3-270m", layer_types=["full_attention"]),
        "a list of 7 entries",
    ),
    "layer_types of another kind": (
        _with("SmolLM3-3B", layer_types=["full_attention"] * 3 + ["linear_attention"]),
        "'layer_types' is 'linear_attention'",
    ),
    "sliding without a window": (
        _with("gemma-3-270m", sliding_window=None),
        "but there is no sliding_window",
    ),
    "sliding switched off": (
        _with("Qwen2.5-0.5B", layer_types=["sliding_attention"] * 4),
        "but there is no sliding_window",
    ),
    "no window at all": (_with("Mistral-7B-v0.1", sliding_window=0), "'sliding_window' is 0"),
    "both directions": (
        _with("gemma-3-270m", use_bidirectional_attention=True),
        "'use_bidirectional_attention' is True",
    ),
    "more chosen than there are": (
        _with("Mixtral-8x7B-v0.1", num_experts_per_tok=9),
        "num_experts_per_tok 9 is more than the 8 experts",
    ),
    "experts that cannot be gated": (
        _with("Mixtral-8x7B-v0.1", hidden_act="relu"),
        "'hidden_act' is 'relu'",
    ),
    "groups that do not divide": (
        {**LATENT["DeepSeek-V3"], "n_group": 3},
        "n_routed_experts 16 is not a multiple of n_group 3",
    ),
    "more groups chosen than there are": (
        {**LATENT["DeepSeek-V3"], "topk_group": 9},
        "topk_group 9 is more than n_group 8",
    ),
    "more chosen than the groups hold": (
        {**LATENT["DeepSeek-V2"], "num_experts_per_tok": 7},
        "num_experts_per_tok 7 is more than the 6 experts to choose from",
    ),
    "a group of one, judged by two": (
        {**LATENT["DeepSeek-V3"], "n_group": 16},
        "n_group 16 leaves fewer than two experts in a group",
    ),
    "experts chosen in another way": (
        {**LATENT["DeepSeek-V2"], "topk_method": "noaux_tc"},
        "'topk_method' is 'noaux_tc'",
    ),
    "latent attention with fewer keys than heads": (
        {**LATENT["MiniCPM3-4B"], "num_key_value_heads": 2},
        "'num_key_value_heads' is 2, required: one a head, 4",
    ),
    "a head that is more than its rotation": (
        {**LATENT["Youtu-LLM-2B"], "head_dim": 24},
        "'head_dim' is 24",
    ),
    "scores sharpened by no factor": (
        {
            **LATENT["DeepSeek-V3"],
            "rope_scaling": {"type": "linear", "mscale_all_dim": 1.0},
        },
        "'factor' is missing",
    ),
    "a kind of layer glm does not have": (
        {**LATENT["GLM-4.7-Flash"], "mlp_layer_types": ["dense", "sparse", "full"]},
        "'mlp_layer_types' is 'full'",
    ),
    "a number without end": (_with("Llama-3.2-1B", rms_norm_eps=math.inf), "required: a number"),
    "a size without end": (_with("Llama-3.2-1B", hidden_size=math.inf), "'hidden_size' is inf"),
    "frequencies of infinity": (
        _with("Phi-3.5-mini-instruct", rope_scaling={"type": "su", "short_factor": [math.inf] * 8}),
        "required: a list of numbers",
    ),
    **{
        f"steps limited to {limits}": (
            {**STATE_SPACE["Mamba-Codestral-7B-v0.1"], "time_step_limit": limits},
            "required: two numbers, the least and the most",
        )
        for limits in (
            [math.inf, math.inf],
            [0.0, math.nan],
            [-math.inf, 1.0],
            [0.5, 0.25],
            [-1.0, 1.0],
            [0.0, True],
            [0.0, {"__float__": "-Infinity"}],
            [0.0],
            7.0,
        )
    },
    "a convolution of one": (
        {**STATE_SPACE["falcon-mamba-7b"], "conv_kernel": 1},
        "'conv_kernel' is 1",
    ),
    "heads that do not fill mamba2": (
        {**STATE_SPACE["Mamba-Codestral-7B-v0.1"], "num_heads": 8},
        "num_heads 8 of head_dim 16 are 128, hidden_size and expand make 256",
    ),
    "groups that do not divide the heads": (
        {**STATE_SPACE["Mamba-Codestral-7B-v0.1"], "n_groups": 3},
        "16 state-space heads are not a multiple of n_groups 3",
    ),
    "heads that do not fill a hybrid": (
        {**STATE_SPACE["Bamba-9B-v1"], "mamba_n_heads": 6},
        "mamba_n_heads 6 of 16 values are 96, required: 128",
    ),
    "attention beyond its period": (
        {**STATE_SPACE["Jamba-v0.1"], "attn_layer_offset": 4},
        "attn_layer_offset 4 is not below attn_layer_period 4",
    ),
    "a kind of layer granite does not have": (
        {**STATE_SPACE["granite-4.0-h-tiny"], "layer_types": ["mamba"] * 3 + ["conv"]},
        "'layer_types' is 'conv'",
    ),
    "delta values that share keys unevenly": (
        {**DELTA["Qwen3-Next-80B-A3B-Instruct"], "linear_num_value_heads": 5},
        "linear_num_value_heads 5 is not a multiple of linear_num_key_heads 2",
    ),
    "a kind of layer qwen does not have": (
        {**DELTA["Qwen3-Next-80B-A3B-Instruct"], "layer_types": ["sliding_attention"] * 4},
        "'layer_types' is 'sliding_attention'",
    ),
    "more than a head rotated": (
        {**DELTA["Qwen3-Next-80B-A3B-Instruct"], "partial_rotary_factor": 1.5},
        "'partial_rotary_factor' is 1.5, required: at most 1",
    ),
    "what sees without text": (
        {**DELTA["Qwen3.5-27B"], "text_config": None},
        "'text_config' is missing",
    ),
    "an unknown key of a section": (
        {
            **DELTA["Qwen3.5-27B"],
            "text_config": {**DELTA["Qwen3.5-27B"]["text_config"], "attn_temperature": 2},
        },
        "config.json, text_config: unknown key 'attn_temperature'",
    ),
    "a layer of no kind": (
        {
            **DELTA["Kimi-Linear-48B-A3B-Instruct"],
            "linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2]},
        },
        "full_attn_layers and kda_layers do not share out 4 layers",
    ),
    "a key in the family's own spelling": (
        {**DELTA["Kimi-Linear-48B-A3B-Instruct"], "num_experts_per_token": "3"},
        "'num_experts_per_token' is '3'",
    ),
    "sequential cohere2": (
        _with("c4ai-command-r7b-12-2024", use_parallel_block=False),
        "'use_parallel_block' is False",
    ),
    "too few rotation switches": (_with("SmolLM3-3B", no_rope_layers=[1]), "4 entries"),
    "a rotation given twice": (
        _with("gemma-3-4b-text", rope_parameters={"full_attention": {"rope_type": "default"}}),
        "both describe full_attention",
    ),
    "a key over two lines": (_with("Llama-3.2-1B", **{"a\nb": 1}), r"unknown key 'a\nb'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    config, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_type_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"model_type": "llama5"})
    assert all(name in str(caught.value) for name in known_architectures())


_NO_ATTENTION: dict[str, Any] = {"num_attention_heads": ..., "num_key_value_heads": ...}
# Sizes for which a family has no default that could be run, and those it does not have.
NO_DEFAULT: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "falcon_mamba": _NO_ATTENTION,
    "mamba": _NO_ATTENTION,
    "mamba2": {**_NO_ATTENTION, "intermediate_size": ..., "num_heads": 8, "head_dim": 16},
    "zamba2": {"num_hidden_layers": 54},
}
# A family of our own, without defaults: whoever trains one names its sizes.
_OURS = "latent_hybrid"
# Families that see, too: their text is described in a section.
_SEEING = {"qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}


@pytest.mark.parametrize("model_type", sorted(set(known_architectures()) - {_OURS}))
def test_defaults_are_transformers_own(model_type: str) -> None:
    """A config that gives only its sizes leaves the rest to the same defaults."""
    sizes: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 503,
        **NO_DEFAULT.get(model_type, {}),
    }
    sizes = {key: value for key, value in sizes.items() if value is not ...}
    if model_type in _SEEING:
        text = {**sizes, "model_type": _SEEING[model_type]}
        sizes = {"model_type": model_type, "text_config": text}
    assert load_config(sizes) == load_config(_saved(AutoConfig.for_model(**sizes)))


def _saved(config: PreTrainedConfig) -> dict[str, Any]:
    """Every key, as transformers writes it."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return values


@pytest.mark.parametrize("alias", ["su", "yarn"])
def test_phi3_calls_longrope_by_older_names(alias: str) -> None:
    config = PUBLISHED["Phi-3.5-mini-instruct"]
    older = {**config, "rope_scaling": {**config["rope_scaling"], "type": alias}}
    assert load_config(older) == load_config(config)


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_keys_that_every_saved_config_may_carry_are_inert(name: str) -> None:
    entry = zoo.ENTRIES[name]
    saved = _saved(AutoConfig.for_model(entry.model_type, **entry.config))
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_length": 20}
    book: dict[str, Any] = {
        "_name_or_path": "x",
        "torch_dtype": "float16",
        "auto_map": {},
        "id2label": {"0": "a"},
    }
    assert load_config({**saved, **generation, **book}) == load_config(saved)


def test_gpt_oss_without_a_rotary_section_is_scaled_and_with_an_empty_one_is_not() -> None:
    config = {key: value for key, value in PUBLISHED["gpt-oss-20b"].items() if "rope" not in key}
    (scaled,), (plain,) = (
        load_config({**config, **section}).ropes for section in ({}, {"rope_parameters": {}})
    )
    assert scaled.magnitude > 1
    assert plain.magnitude == 1


def test_a_mixture_of_no_experts_is_dense() -> None:
    config = load_config(_with("Qwen3-30B-A3B", num_experts=0))
    assert all(isinstance(layer.feed_forward, MlpSpec) for layer in config.layers)
