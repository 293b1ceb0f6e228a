"""A checkpoint of peer_shapes goes in; a GGUF file of the same weights comes out, for llama.cpp.

Runs in an interpreter that has gguf and numpy, and needs nothing of edgewright.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Config = dict[str, Any]
Part = tuple[str, Array]

_ARCHITECTURES = {
    "llama": "llama",
    "deepseek_v3": "deepseek2",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "granitemoehybrid": "granitehybrid",
}
# What llama.cpp calls the part of a layer that ends so in transformers.
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "norm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "shared_mlp.output_linear": "ffn_down",
    "in_proj": "ssm_in",
    "conv1d": "ssm_conv1d",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "out_proj": "ssm_out",
    "mixer.norm": "ssm_norm",
    "mamba.norm": "ssm_norm",
}
# llama's matrices whose rows rotate, and how many heads there are.
_ROTATED = {
    "self_attn.q_proj.weight": "num_attention_heads",
    "self_attn.k_proj.weight": "num_key_value_heads",
}
_OTHER_NAMES = {
    "model.embed_tokens": "token_embd",
    "backbone.embeddings": "token_embd",
    "model.norm": "output_norm",
    "backbone.norm_f": "output_norm",
    "lm_head": "output",
}


@dataclass(frozen=True)
class Checkpoint:
    config: Config
    data: Path
    header: dict[str, Any]
    begin: int

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        path = folder / "model.safetensors"
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        config = json.loads((folder / "config.json").read_text())
        return cls(config, path, header, 8 + size)

    def tensors(self) -> Iterator[Part]:
        for name, entry in self.header.items():
            shape, offset = tuple(entry["shape"]), self.begin + entry["data_offsets"][0]
            yield name, np.memmap(self.data, np.float16, "r", offset, shape)


def write_gguf(folder: Path, out: Path) -> None:
    """Matrices stay float16; vectors, convolutions and decays are float32, as llama.cpp has it."""
    from gguf import GGUFWriter

    checkpoint = Checkpoint.open(folder)
    writer = GGUFWriter(out, _ARCHITECTURES[checkpoint.config["model_type"]])
    _add_metadata(writer, checkpoint.config)
    for name, array in _parts(checkpoint):
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array in _parts(checkpoint):
        writer.write_tensor_data(array)
    writer.close()


def _parts(checkpoint: Checkpoint) -> Iterator[Part]:
    for name, array in checkpoint.tensors():
        yield from _converted(name, array, checkpoint.config)


def _converted(name: str, array: Array, config: Config) -> Iterator[Part]:
    found = re.match(r"(?:model|backbone)\.layers\.(\d+)\.(.+)", name)
    if found is None:
        stem, suffix = name.rsplit(".", 1)
        yield f"{_OTHER_NAMES[stem]}.{suffix}", _stored(array)
        return
    block, part = f"blk.{found[1]}", found[2]
    if part == "self_attn.kv_b_proj.weight":
        yield from _split_heads(block, array, config)
    elif config["model_type"] == "llama" and part in _ROTATED:
        heads = config[_ROTATED[part]]
        yield f"{block}.{_LAYER_NAMES[part.removesuffix('.weight')]}.weight", _paired(array, heads)
    elif part == "shared_mlp.input_linear.weight":
        gate, up = np.split(array, 2)
        yield f"{block}.ffn_gate.weight", gate
        yield f"{block}.ffn_up.weight", up
    elif part.endswith("A_log"):
        decay = -np.exp(array.astype(np.float32))
        yield f"{block}.ssm_a", decay if decay.ndim == 2 else decay[:, None]
    elif part.endswith(".D"):
        skip = array.astype(np.float32)
        yield f"{block}.ssm_d", skip if config["model_type"] == "mamba" else skip[:, None]
    elif part.endswith("dt_bias"):
        yield f"{block}.ssm_dt.bias", _stored(array)
    else:
        stem, suffix = part.rsplit(".", 1)
        theirs = _LAYER_NAMES.get(stem) or _LAYER_NAMES[stem.split(".", 1)[1]]
        array = array.squeeze(1) if array.ndim == 3 else array
        if theirs == "ssm_norm":
            array = array[None]  # [groups, channels]
        yield f"{block}.{theirs}.{suffix}", _stored(array, theirs in ("ssm_norm", "ssm_conv1d"))


def _paired(array: Array, heads: int) -> Array:
    """Values that rotate together lie half a head apart in transformers, side by side here."""
    halves = array.reshape(heads, 2, -1, array.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _split_heads(block: str, array: Array, config: Config) -> Iterator[Part]:
    """Keys are to be absorbed, so their factor is transposed; values stay as they are."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    rows = array.reshape(heads, -1, array.shape[-1])  # [heads, nope + value, rank]
    yield f"{block}.attn_k_b.weight", np.ascontiguousarray(rows[:, :nope].transpose(0, 2, 1))
    yield f"{block}.attn_v_b.weight", np.ascontiguousarray(rows[:, nope:])


def _stored(array: Array, small: bool = False) -> Array:
    return array.astype(np.float32) if small or array.ndim == 1 else array


def _add_metadata(writer: Any, config: Config) -> None:
    writer.add_context_length(config.get("max_position_embeddings", 1 << 20))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", config.get("layer_norm_epsilon")))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(1)
    add: Callable[[Any, Config], None] = {
        "llama": _add_llama,
        "deepseek_v3": _add_latent,
        "mamba": _add_mamba,
        "mamba2": _add_mamba2,
        "granitemoehybrid": _add_granite,
    }[config["model_type"]]
    add(writer, config)


def _add_llama(writer: Any, config: Config) -> None:
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])


def _add_latent(writer: Any, config: Config) -> None:
    rank, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_leading_dense_block_count(config["num_hidden_layers"])
    writer.add_q_lora_rank(0)
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_shared_count(0)
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(config["rope_theta"])


def _add_mamba(writer: Any, config: Config) -> None:
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    writer.add_ssm_conv_kernel(config["conv_kernel"])
    writer.add_ssm_inner_size(config["intermediate_size"])
    writer.add_ssm_state_size(config["state_size"])
    writer.add_ssm_time_step_rank(config["time_step_rank"])
    writer.add_ssm_dt_b_c_rms(False)


def _add_mamba2(writer: Any, config: Config) -> None:
    writer.add_head_count(0)
    writer.add_feed_forward_length(0)
    heads, head_dim = config["num_heads"], config["head_dim"]
    _add_state_space_dual(writer, heads, head_dim, config["state_size"], config["conv_kernel"])


def _add_granite(writer: Any, config: Config) -> None:
    heads = config["num_attention_heads"]
    attends = [name == "attention" for name in config["layer_types"]]
    writer.add_head_count(heads)
    writer.add_head_count_kv([config["num_key_value_heads"] if yes else 0 for yes in attends])
    writer.add_feed_forward_length(config["shared_intermediate_size"])
    head_dim = config["hidden_size"] // heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_scaling_finetuned(False)  # here it means: no positions
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    sizes = config["mamba_n_heads"], config["mamba_d_head"]
    _add_state_space_dual(writer, *sizes, config["mamba_d_state"], config["mamba_d_conv"])


def _add_state_space_dual(writer: Any, heads: int, head_dim: int, state: int, taps: int) -> None:
    writer.add_ssm_conv_kernel(taps)
    writer.add_ssm_inner_size(heads * head_dim)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(1)
