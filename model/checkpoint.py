"""A checkpoint's directory in: config.json and safetensors; its config and lazy tensors out.

Everything in it is untrusted. Pickles are never read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json, one_line
from edgewright.model.block_scaled import dequantised, read_scheme
from edgewright.model.lazy import LazyTensor
from edgewright.model.safetensors_file import (
    FLOAT_DTYPES,
    FileTensor,
    SafetensorsFile,
    StoredTensor,
    open_safetensors,
)
from edgewright.model.strict_json import parse_object, read_object, read_small_file

CONFIG_LIMIT_BYTES = 16 << 20
INDEX_LIMIT_BYTES = 100_000_000
SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, eq=False)
class CheckpointTensors(Mapping[str, LazyTensor]):
    """All names; asking for a tensor of a dtype that cannot be read is the error, having it is not,
    because an architecture may know it to be inert."""

    readable: Mapping[str, LazyTensor]
    unreadable: Mapping[str, StoredTensor]
    quantised: bool

    def __getitem__(self, name: str) -> LazyTensor:
        if (stored := self.unreadable.get(name)) is not None:
            raise CheckpointError(self._why_unreadable(stored))
        return self.readable[name]

    def __contains__(self, name: object) -> bool:
        return name in self.readable or name in self.unreadable

    def __iter__(self) -> Iterator[str]:
        yield from self.readable
        yield from self.unreadable

    def __len__(self) -> int:
        return len(self.readable) + len(self.unreadable)

    def _why_unreadable(self, stored: StoredTensor) -> str:
        where = f"{stored.path}: tensor {stored.name}: dtype {stored.dtype}"
        if stored.dtype == "F64":
            return f"{where} would lose precision; save it as F32, F16 or BF16"
        if self.quantised:
            return f"{where} has no scales that quantization_config explains"
        return f"{where} is not a weight's; config.json has no quantization_config to explain it"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    path: Path
    config: dict[str, Json]
    generation_config: dict[str, Json] | None
    tensors: CheckpointTensors
    tokenizer_files: tuple[Path, ...]
    # "sha256:..." over config.json and every shard's size and header. It reads no weights, so
    # it tells checkpoints apart but is no proof of their values.
    identity: str
    stored_bytes: int
    block_scaled: frozenset[str]

    def is_block_scaled(self, name: str) -> bool:
        """Whether the tensor of this name is dequantised as it is read."""
        return name in self.block_scaled


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Reads config.json and the headers; no tensor is read."""
    root = Path(path)
    try:
        return _open(root)
    except OSError as error:  # a directory that may not be entered, a name too long, ...
        raise CheckpointError(f"{root}: cannot be read: {error.strerror}") from None


def _open(root: Path) -> Checkpoint:
    _check_is_checkpoint(root)
    config_path = root / "config.json"
    config_bytes = read_small_file(config_path, CONFIG_LIMIT_BYTES)
    # The steps of a state-space model are published as limited to Infinity.
    config = parse_object(config_bytes, str(config_path), infinity=True)
    scheme = read_scheme(config, str(config_path))
    shards = _open_shards(root)
    stored = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    decoded, replaced = dequantised(stored, scheme)
    plain = {
        name: FileTensor(name, tensor.shape, FLOAT_DTYPES[tensor.dtype], tensor)
        for name, tensor in stored.items()
        if name not in replaced and tensor.dtype in FLOAT_DTYPES
    }
    rest = {n: t for n, t in stored.items() if n not in replaced and n not in plain}
    generation_path = root / "generation_config.json"
    return Checkpoint(
        path=root,
        config=config,
        generation_config=read_object(generation_path, CONFIG_LIMIT_BYTES)
        if generation_path.exists()
        else None,
        tensors=CheckpointTensors({**plain, **decoded}, rest, scheme is not None),
        tokenizer_files=tuple(p for name in TOKENIZER_NAMES if (p := root / name).is_file()),
        identity=_identity(config_bytes, shards),
        stored_bytes=sum(tensor.nbytes for tensor in stored.values()),
        block_scaled=frozenset(decoded),
    )


def _check_is_checkpoint(root: Path) -> None:
    needed = "a directory with config.json and model.safetensors is needed"
    if not root.exists():
        raise CheckpointError(
            f"{root}: no such directory; {needed} (a model on a hub must be downloaded first)"
        )
    if root.is_dir():
        if not (root / "config.json").exists():
            what = "holds GGUF, which is not read" if any(root.glob("*.gguf")) else "no config.json"
            raise CheckpointError(f"{root}: not a checkpoint: {what}; {needed}")
        return
    if root.suffix == ".gguf":
        raise CheckpointError(f"{root}: GGUF files are not read; {needed}")
    if any(root.match(pattern) for pattern in _PICKLES):
        raise CheckpointError(f"{root}: {_NO_PICKLES}")
    raise CheckpointError(f"{root}: not a directory; {needed}")


_NO_PICKLES = (
    "pickles are never read, because opening one can run code; convert it to safetensors"
    " (in transformers: save_pretrained)"
)


def _open_shards(root: Path) -> list[SafetensorsFile]:
    # The order transformers looks in.
    if (root / SINGLE_NAME).exists():
        return [open_safetensors(root / SINGLE_NAME)]
    if (root / INDEX_NAME).exists():
        return _open_indexed(root)
    found = sorted(p for p in root.glob("*.safetensors") if not p.name.startswith("adapter_"))
    if len(found) == 1:
        return [open_safetensors(found[0])]
    if found:
        raise CheckpointError(
            f"{root}: {len(found)} safetensors files and neither {SINGLE_NAME} nor {INDEX_NAME} to"
            " say which are the model's"
        )
    if (root / "adapter_model.safetensors").exists():
        raise CheckpointError(f"{root}: only an adapter; merge it into its base model first")
    if pickles := sorted(p.name for pattern in _PICKLES for p in root.glob(pattern)):
        raise CheckpointError(f"{root}: only {one_line(pickles[0])}: {_NO_PICKLES}")
    raise CheckpointError(f"{root}: no weights: neither {SINGLE_NAME} nor {INDEX_NAME}")


def _open_indexed(root: Path) -> list[SafetensorsFile]:
    index_path = root / INDEX_NAME
    weight_map = read_object(index_path, INDEX_LIMIT_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map must map tensor names to shard files")
    listed: dict[str, set[str]] = {}
    for tensor, file_name in weight_map.items():
        listed.setdefault(_shard_name(file_name, index_path), set()).add(tensor)
    for file_name in listed:
        if not (root / file_name).exists():
            raise CheckpointError(
                f"{root / file_name}: missing shard, {len(listed)} are named in {INDEX_NAME};"
                " download it again"
            )
    shards = [open_safetensors(root / file_name) for file_name in sorted(listed)]
    for shard in shards:
        names = listed[shard.path.name]
        if absent := sorted(names - shard.tensors.keys()):
            raise CheckpointError(
                f"{shard.path}: tensor {one_line(absent[0])} is missing, where {INDEX_NAME} puts it"
            )
        if extra := sorted(shard.tensors.keys() - names):
            raise CheckpointError(
                f"{shard.path}: tensor {extra[0]} is here, {INDEX_NAME} does not say so"
            )
    return shards


def _shard_name(value: Json, index_path: Path) -> str:
    """A plain name: the shard itself may be a link, as in download caches, but an index may not
    point out of its directory."""
    if not isinstance(value, str) or value != Path(value).name or not value.isprintable():
        raise CheckpointError(
            f"{index_path}: shard {one_line(str(value))} must be the plain name of a file beside it"
        )
    if "\\" in value or not value.endswith(".safetensors"):
        raise CheckpointError(f"{index_path}: shard {value} must be a .safetensors file")
    return value


def _identity(config: bytes, shards: list[SafetensorsFile]) -> str:
    digest = hashlib.sha256(hashlib.sha256(config).digest())
    for shard in shards:
        digest.update(f"{shard.size} {shard.header_sha256}\n".encode())
    return f"sha256:{digest.hexdigest()}"
