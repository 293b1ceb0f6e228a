"""The reference: PyTorch's logits for a whole prompt at once, in float32, without a cache."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from edgewright.export.validate.metrics import Logits
from edgewright.model.loading import LazyModel, Readable

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Reference(Protocol):
    @property
    def name(self) -> str: ...

    def logits(self, ids: list[int], chunks: tuple[int, ...]) -> Logits:
        """Of every token [len(ids), vocab]; cached where `chunks` are more than one."""
        ...


class TransformersReference:
    """transformers' own modelling code, which nobody here wrote."""

    def __init__(self, path: Path) -> None:
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

        import edgewright.export.validate.latent_hybrid  # noqa: F401 - its type is ours

        with _quiet():
            self._model = AutoModelForCausalLM.from_pretrained(  # type: ignore[no-untyped-call]
                path,
                config=_dequantising(AutoConfig.from_pretrained(path, local_files_only=True)),
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
            ).eval()
        self.name = f"transformers {transformers.__version__} {type(self._model).__name__}"

    def logits(self, ids: list[int], chunks: tuple[int, ...]) -> Logits:
        parts, start, past = [], 0, None
        for width in chunks:
            with torch.no_grad(), _quiet():
                output = self._model(
                    torch.tensor([ids[start : start + width]]),
                    past_key_values=past,
                    use_cache=len(chunks) > 1,
                )
            past = getattr(output, "past_key_values", None)
            parts.append(output.logits[0].float().numpy())
            start += width
        return np.concatenate(parts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers tells of files it loads and of packages that it would be faster with."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


class OwnReference:
    """Our own modules, where transformers' cannot be had: it proves the export, not the model."""

    def __init__(
        self, model: LazyModel, reason: str, packed: Mapping[str, Readable] | None = None
    ) -> None:
        self.name = f"edgewright's own PyTorch model ({reason})"
        self._decoder = model.materialise(packed)

    def logits(self, ids: list[int], chunks: tuple[int, ...]) -> Logits:
        states = [
            torch.zeros(spec.resolve(1, len(ids)), dtype=getattr(torch, spec.dtype))
            for spec in self._decoder.layout
        ]
        parts, start = [], 0
        for width in chunks:
            with torch.no_grad():
                logits, states = self._decoder(
                    torch.tensor([ids[start : start + width]]),
                    torch.tensor([start]),
                    torch.tensor([width]),
                    torch.arange(width)[None],
                    states,
                )
            parts.append(logits[0].numpy())
            start += width
        return np.concatenate(parts)


def _dequantising(config: PretrainedConfig) -> PretrainedConfig:
    """Block-scaled weights are to be unpacked as they are read, which is what we do with them."""
    scheme = getattr(config, "quantization_config", None)
    if isinstance(scheme, dict):
        scheme["dequantize"] = True
    return config


def open_reference(path: Path, model: LazyModel) -> Reference:
    """transformers' own model if it can be had; the report names which it was, and why not."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        return OwnReference(model, "transformers is not installed")
    try:
        return TransformersReference(path)
    except Exception as error:  # transformers raises whatever its model code raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return OwnReference(model, f"transformers cannot load the checkpoint: {reason[:200]}")
