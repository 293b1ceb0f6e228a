"""A checkpoint directory in; its config, a decoder on the meta device and the lazy weights out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.architectures import find_architecture, load_config
from edgewright.model.checkpoint import Checkpoint, open_checkpoint
from edgewright.model.config import CacheDtype, ModelConfig
from edgewright.model.decoder import Decoder, Embedding
from edgewright.model.feed_forward import MixtureOfExperts
from edgewright.model.lazy import TORCH_DTYPES, constant
from edgewright.model.linear import Linear
from edgewright.model.weights import USUAL_NAMES, TensorSource, Weights, settle_head


class Readable(Protocol):
    def read(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class LazyModel:
    """A decoder without weights, and where each of its weights is to be read."""

    checkpoint: Checkpoint
    config: ModelConfig
    decoder: Decoder
    weights: Weights  # one for every parameter and buffer of the decoder

    @property
    def parameters(self) -> Weights:
        """What the checkpoint fills; the rest of `weights` are constants of ours."""
        return {name: self.weights[name] for name, _ in self.decoder.named_parameters()}

    @property
    def parameter_count(self) -> int:
        return sum(tensor.numel for tensor in self.parameters.values())

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.parameters.values())

    @property
    def weight_dtypes(self) -> tuple[str, ...]:
        """The dtypes of the matrices; norms, biases and what else is widened say nothing."""
        return tuple(sorted({self.weights[name].dtype for name in self.matrices()}))

    def matrices(self) -> Iterator[str]:
        for owner, module in self.decoder.named_modules():
            if isinstance(module, Embedding | Linear | MixtureOfExperts):
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.ndim > 1 and not name.endswith("bias"):
                        yield f"{owner}.{name}"

    def materialise(self, replaced: Mapping[str, Readable] | None = None) -> Decoder:
        """The same decoder with its weights in memory, ready to run; some by others that its ops
        take in their place."""
        decoder = build_decoder(self.config)
        for name, tensor in {**self.weights, **(replaced or {})}.items():
            _assign(decoder, name, tensor.read())
        return decoder.eval()


def build_decoder(config: ModelConfig, device: str = "meta") -> Decoder:
    with torch.device(device):
        return Decoder(config)


def open_model(path: str | Path, *, cache_dtype: CacheDtype = "float32") -> LazyModel:
    """Read the config and match every tensor to a parameter; weights are read when asked for."""
    checkpoint = open_checkpoint(path)
    architecture = find_architecture(checkpoint.config)
    names = getattr(architecture, "NAMES", USUAL_NAMES)
    source = TensorSource(checkpoint.tensors, checkpoint.is_block_scaled, names)
    config = settle_head(source, load_config(checkpoint.config).with_cache(cache_dtype))
    weights = architecture.weights(source, config)
    source.finish(architecture.INERT_TENSORS)
    decoder = build_decoder(config)
    _match(decoder, weights)
    for name, buffer in list(decoder.named_buffers()):
        weights[name] = constant(buffer, name)
        _assign(decoder, name, buffer.to("meta"))
    return LazyModel(checkpoint, config, decoder.eval(), weights)


def _match(decoder: Decoder, weights: Weights) -> None:
    """Each parameter takes its tensor's dtype; a shape that differs is the checkpoint's mistake."""
    parameters = dict(decoder.named_parameters())
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())
        raise AssertionError(f"the architecture's weight names do not match its decoder: {odd}")
    for name, tensor in weights.items():
        required = tuple(parameters[name].shape)
        if tensor.shape != required:
            raise CheckpointError(
                f"tensor {tensor.name} has shape {list(tensor.shape)},"
                f" config.json requires {list(required)}"
            )
        dtype = TORCH_DTYPES[tensor.dtype]
        _assign(decoder, name, torch.empty(required, dtype=dtype, device="meta"))


def _assign(decoder: Decoder, name: str, value: torch.Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = decoder.get_submodule(owner_name)
    if leaf in owner._buffers:
        owner._buffers[leaf] = value
    else:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
