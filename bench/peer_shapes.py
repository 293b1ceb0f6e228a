"""Shapes of a llama, of latent attention and of state spaces in the names that transformers has for
them, with values such as trained models have where speed or sense depends on them: decays, steps,
norms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Fill = Callable[[Floats], Floats]  # of standard normal values
Tensor = tuple[str, tuple[int, ...], Fill]


def _matrix(name: str, rows: int, columns: int, gain: float = 1.5) -> Tensor:
    return f"{name}.weight", (rows, columns), lambda z: z * np.float32(gain / math.sqrt(columns))


def _norm(name: str, size: int) -> Tensor:
    return f"{name}.weight", (size,), lambda z: 1 + 0.1 * z


def _convolution(name: str, channels: int, taps: int) -> Iterator[Tensor]:
    yield f"{name}.weight", (channels, 1, taps), lambda z: z / math.sqrt(taps)
    yield f"{name}.bias", (channels,), lambda z: 0.1 * z


def _uniform(z: Floats) -> Floats:
    """Standard normal values, folded into 0 to 1."""
    return np.abs(z) % 1


def _step_bias(z: Floats) -> Floats:
    """Steps from 0.001 to 0.1, as softplus gives them of a bias."""
    step = np.exp(_uniform(z) * math.log(100) + math.log(1e-3))
    return np.asarray(step + np.log(-np.expm1(-step)), np.float32)


def _state_space_dual(
    name: str, hidden: int, heads: int, head_dim: int, state: int
) -> Iterator[Tensor]:
    """Mamba-2 with a single group."""
    inner = heads * head_dim
    yield _matrix(f"{name}.in_proj", 2 * inner + 2 * state + heads, hidden)
    yield from _convolution(f"{name}.conv1d", inner + 2 * state, 4)
    yield f"{name}.dt_bias", (heads,), _step_bias
    yield f"{name}.A_log", (heads,), lambda z: np.log(1 + 15 * _uniform(z))
    yield f"{name}.D", (heads,), np.ones_like
    yield _norm(f"{name}.norm", inner)
    yield _matrix(f"{name}.out_proj", hidden, inner)


def _grouped_query(
    layer: str, hidden: int, heads: int, kv_heads: int, head_dim: int
) -> Iterator[Tensor]:
    for part, count in {"q": heads, "k": kv_heads, "v": kv_heads}.items():
        yield _matrix(f"{layer}.self_attn.{part}_proj", count * head_dim, hidden)
    yield _matrix(f"{layer}.self_attn.o_proj", hidden, heads * head_dim)


@dataclass(frozen=True)
class Shape(ABC):
    """What config.json says and what tensors there are, in transformers' names."""

    hidden: int
    layers: int
    vocab: int

    @abstractmethod
    def config(self) -> dict[str, object]: ...

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]: ...

    @property
    def parameters(self) -> int:
        return sum(math.prod(dims) for _, dims, _ in self.tensors())


@dataclass(frozen=True)
class Llama(Shape):
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1 << 17,
            "rope_theta": 500000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "dtype": "float16",
        }

    def tensors(self) -> Iterator[Tensor]:
        yield _matrix("model.embed_tokens", self.vocab, self.hidden)
        for n in range(self.layers):
            layer = f"model.layers.{n}"
            yield _norm(f"{layer}.input_layernorm", self.hidden)
            yield from _grouped_query(layer, self.hidden, self.heads, self.kv_heads, self.head_dim)
            yield _norm(f"{layer}.post_attention_layernorm", self.hidden)
            for part in ("gate", "up"):
                yield _matrix(f"{layer}.mlp.{part}_proj", self.intermediate, self.hidden)
            yield _matrix(f"{layer}.mlp.down_proj", self.hidden, self.intermediate)
        yield _norm("model.norm", self.hidden)


@dataclass(frozen=True)
class Latent(Shape):
    """DeepSeek-V3 without experts: every layer's MLP is dense."""

    heads: int
    rank: int
    intermediate: int
    nope: int = 128
    rope: int = 64
    value: int = 128

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "first_k_dense_replace": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "q_lora_rank": None,
            "kv_lora_rank": self.rank,
            "qk_nope_head_dim": self.nope,
            "qk_rope_head_dim": self.rope,
            "v_head_dim": self.value,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
            "max_position_embeddings": 1 << 17,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "dtype": "float16",
        }

    def tensors(self) -> Iterator[Tensor]:
        yield _matrix("model.embed_tokens", self.vocab, self.hidden)
        for n in range(self.layers):
            layer, attention = f"model.layers.{n}", f"model.layers.{n}.self_attn"
            yield _norm(f"{layer}.input_layernorm", self.hidden)
            queries, values = self.heads * (self.nope + self.rope), self.heads * self.value
            yield _matrix(f"{attention}.q_proj", queries, self.hidden)
            yield _matrix(f"{attention}.kv_a_proj_with_mqa", self.rank + self.rope, self.hidden)
            yield _norm(f"{attention}.kv_a_layernorm", self.rank)
            yield _matrix(f"{attention}.kv_b_proj", self.heads * self.nope + values, self.rank)
            yield _matrix(f"{attention}.o_proj", self.hidden, values)
            yield _norm(f"{layer}.post_attention_layernorm", self.hidden)
            for part in ("gate", "up"):
                yield _matrix(f"{layer}.mlp.{part}_proj", self.intermediate, self.hidden)
            yield _matrix(f"{layer}.mlp.down_proj", self.hidden, self.intermediate)
        yield _norm("model.norm", self.hidden)
        yield _matrix("lm_head", self.vocab, self.hidden)


@dataclass(frozen=True)
class Mamba(Shape):
    state: int
    step_rank: int

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "state_size": self.state,
            "conv_kernel": 4,
            "expand": 2,
            "time_step_rank": self.step_rank,
            "vocab_size": self.vocab,
            "tie_word_embeddings": True,
            "use_bias": False,
            "use_conv_bias": True,
            "hidden_act": "silu",
            "layer_norm_epsilon": 1e-5,
            "dtype": "float16",
        }

    def tensors(self) -> Iterator[Tensor]:
        inner, rank = 2 * self.hidden, self.step_rank
        decays = np.log(np.arange(1, self.state + 1, dtype=np.float32))
        yield _matrix("backbone.embeddings", self.vocab, self.hidden)
        for n in range(self.layers):
            mixer = f"backbone.layers.{n}.mixer"
            yield _norm(f"backbone.layers.{n}.norm", self.hidden)
            yield _matrix(f"{mixer}.in_proj", 2 * inner, self.hidden)
            yield from _convolution(f"{mixer}.conv1d", inner, 4)
            # A layer multiplies three things that this one gives: with a larger gain the model is
            # chaos, and two that round differently have nothing in common after 48 layers.
            yield _matrix(f"{mixer}.x_proj", rank + 2 * self.state, inner, gain=0.5)
            yield _matrix(f"{mixer}.dt_proj", inner, rank, gain=0.5)
            yield f"{mixer}.dt_proj.bias", (inner,), _step_bias
            yield f"{mixer}.A_log", (inner, self.state), lambda z: np.resize(decays, z.size)
            yield f"{mixer}.D", (inner,), np.ones_like
            yield _matrix(f"{mixer}.out_proj", self.hidden, inner)
        yield _norm("backbone.norm_f", self.hidden)


@dataclass(frozen=True)
class Mamba2(Shape):
    heads: int
    head_dim: int
    state: int

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["Mamba2ForCausalLM"],
            "model_type": "mamba2",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_heads": self.heads,
            "head_dim": self.head_dim,
            "state_size": self.state,
            "n_groups": 1,
            "conv_kernel": 4,
            "expand": 2,
            "vocab_size": self.vocab,
            "tie_word_embeddings": True,
            "use_bias": False,
            "use_conv_bias": True,
            "hidden_act": "silu",
            "layer_norm_epsilon": 1e-5,
            "dtype": "float16",
        }

    def tensors(self) -> Iterator[Tensor]:
        yield _matrix("backbone.embeddings", self.vocab, self.hidden)
        for n in range(self.layers):
            layer = f"backbone.layers.{n}"
            yield _norm(f"{layer}.norm", self.hidden)
            sizes = self.hidden, self.heads, self.head_dim, self.state
            yield from _state_space_dual(f"{layer}.mixer", *sizes)
        yield _norm("backbone.norm_f", self.hidden)


@dataclass(frozen=True)
class Granite(Shape):
    """Granite 4.0 without experts: Mamba-2, and attention without positions in a few layers."""

    heads: int
    kv_heads: int
    head_dim: int
    state: int
    intermediate: int
    recurrent_heads: int
    recurrent_head_dim: int
    attention: tuple[int, ...]  # the layers that have it

    def config(self) -> dict[str, object]:
        names = ["attention" if n in self.attention else "mamba" for n in range(self.layers)]
        return {
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "model_type": "granitemoehybrid",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "shared_intermediate_size": self.intermediate,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "layer_types": names,
            "mamba_n_heads": self.recurrent_heads,
            "mamba_d_head": self.recurrent_head_dim,
            "mamba_d_state": self.state,
            "mamba_n_groups": 1,
            "mamba_d_conv": 4,
            "mamba_expand": 2,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            "attention_bias": False,
            "attention_multiplier": 1 / self.head_dim,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
            "position_embedding_type": "nope",
            "vocab_size": self.vocab,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1 << 17,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "dtype": "float16",
        }

    def tensors(self) -> Iterator[Tensor]:
        yield _matrix("model.embed_tokens", self.vocab, self.hidden)
        for n in range(self.layers):
            layer = f"model.layers.{n}"
            yield _norm(f"{layer}.input_layernorm", self.hidden)
            if n in self.attention:
                sizes = self.hidden, self.heads, self.kv_heads, self.head_dim
                yield from _grouped_query(layer, *sizes)
            else:
                sizes = self.hidden, self.recurrent_heads, self.recurrent_head_dim, self.state
                yield from _state_space_dual(f"{layer}.mamba", *sizes)
            yield _norm(f"{layer}.post_attention_layernorm", self.hidden)
            yield _matrix(f"{layer}.shared_mlp.input_linear", 2 * self.intermediate, self.hidden)
            yield _matrix(f"{layer}.shared_mlp.output_linear", self.hidden, self.intermediate)
        yield _norm("model.norm", self.hidden)


SHAPES: dict[str, dict[str, Shape]] = {
    "real": {
        "llama": Llama(2048, 16, 128256, heads=32, kv_heads=8, head_dim=64, intermediate=8192),
        "mla": Latent(2048, 12, 32000, heads=16, rank=512, intermediate=10944),
        "mamba": Mamba(2048, 48, 50280, state=16, step_rank=128),
        "mamba2": Mamba2(2048, 48, 50288, heads=64, head_dim=64, state=128),
        "granite": Granite(
            1536, 40, 100352, 12, 4, 128, 128, 4096, 48, 64, attention=(5, 15, 25, 35)
        ),
    },
    "small": {
        "llama": Llama(256, 3, 2000, heads=4, kv_heads=2, head_dim=64, intermediate=704),
        "mla": Latent(
            256, 3, 2000, heads=4, rank=128, intermediate=704, nope=64, rope=32, value=64
        ),
        "mamba": Mamba(256, 4, 2000, state=16, step_rank=16),
        "mamba2": Mamba2(256, 4, 2000, heads=8, head_dim=64, state=128),
        "granite": Granite(256, 4, 2000, 4, 2, 64, 128, 512, 8, 64, attention=(2,)),
    },
}
