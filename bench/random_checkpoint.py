"""A shape goes in; a random llama checkpoint of that shape comes out, sharded, cheap to write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SHARD_BYTES = 1 << 30
_PAGE_VALUES = (8 << 20) + 7  # odd, so that no two tensors are cut from it alike


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        head_dim = self.hidden // self.heads
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for n in range(self.layers):
            layer = f"model.layers.{n}"
            yield f"{layer}.input_layernorm.weight", (self.hidden,)
            for name, rows in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                yield f"{layer}.self_attn.{name}_proj.weight", (rows * head_dim, self.hidden)
            yield f"{layer}.self_attn.o_proj.weight", (self.hidden, self.heads * head_dim)
            yield f"{layer}.post_attention_layernorm.weight", (self.hidden,)
            for name in ("gate", "up"):
                yield f"{layer}.mlp.{name}_proj.weight", (self.intermediate, self.hidden)
            yield f"{layer}.mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors())


SHAPES = {
    "150M": Shape(896, 2432, 12, 14, 14, 32000, tied=True),
    "1B": Shape(2048, 8192, 16, 32, 8, 32000, tied=True),
    "4GB": Shape(2560, 6912, 24, 20, 20, 32000, tied=False),
    "7B": Shape(4096, 11008, 32, 32, 32, 32000, tied=False),
}


def write_checkpoint(shape: Shape, folder: Path) -> int:
    """Writes bfloat16 safetensors with an index; gives their bytes. Needs no memory to speak of."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, dims in shape.tensors():
        if size and size + 2 * math.prod(dims) > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, dims))
        size += 2 * math.prod(dims)
    page, begun = _random_page(), 0
    where: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        begun += _write_shard(folder / file, tensors, page, begun)
        where |= {name: file for name, _ in tensors}
    total = 2 * shape.parameters
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _random_page() -> bytes:
    """Values near 0.02, as weights are; a bfloat16 is the upper half of a float32."""
    values = np.random.default_rng(0).standard_normal(_PAGE_VALUES, dtype=np.float32) * 0.02
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


def _write_shard(
    path: Path, tensors: list[tuple[str, tuple[int, ...]]], page: bytes, begun: int
) -> int:
    """One endless run of the page goes on from shard to shard: each tensor begins elsewhere in it,
    so no two are equal."""
    header, offset = {}, 0
    for name, dims in tensors:
        size = 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        written = 0
        while written < offset:
            at = (begun + written) % len(page)
            written += file.write(memoryview(page)[at : at + offset - written])
    return offset
