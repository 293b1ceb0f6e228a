"""Random weights for any model of transformers: a config goes in, a checkpoint of it comes out."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedConfig

DtypeName = Literal["float32", "float16", "bfloat16"]


def save_random_model(
    config: PreTrainedConfig, path: Path, *, seed: str, dtype: DtypeName = "float32"
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    seeing = hasattr(config, "vision_config")
    with torch.no_grad():
        kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
        model = kind.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            parameter.copy_(_random_weight(name, parameter, config.model_type, generator))
        # Some learned values are not parameters to transformers.
        stored = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in stored:
                buffer.copy_(_random_weight(name, buffer, config.model_type, generator))
        model.to(getattr(torch, dtype)).save_pretrained(path)


def _random_weight(name: str, like: Tensor, model_type: str, generator: Generator) -> Tensor:
    """Large enough that attention is not flat, and nowhere a value that would hide its absence."""
    import torch

    noise: Tensor = torch.randn(like.shape, generator=generator)
    if "norm" in name and "weight" in name:
        # Around what it starts as: some models add one to their norms' weights.
        return 0.2 * noise + float(like.mean().round())
    if name.endswith(("dt_bias", "dt_proj.bias")):
        return noise - 1.5  # with the decays of A_log, a step leaves a tenth to nearly all
    if "bias" in name or "sinks" in name:
        return 0.5 * noise
    if name.endswith("A_log"):
        return 0.8 * noise
    if name.endswith(".D"):
        return 0.3 * noise + 1.0
    # RG-LRU: a step leaves a half to nearly all of a state, but not so nearly all that 1 - a² has
    # no digits left in float32.
    if "recurrent_param" in name:
        return noise - 2.5
    if "gate_weight" in name:
        return noise * (0.4 / like.shape[-1] ** 0.5)
    if "shared_transformer" in name:
        # Zamba2's block has no residuals of its own, so that every step of it multiplies errors.
        return noise * (0.8 / like.shape[-1] ** 0.5)
    # gpt_oss saves its experts as [experts, in, out].
    fan_in = like.shape[-2 if model_type == "gpt_oss" and noise.ndim == 3 else -1]
    return noise * (1.5 / fan_in**0.5)
