"""FP8 and MXFP4 storage against transformers' own dequantisation, and wrong scales refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.checkpoint import Checkpoint, open_checkpoint

FP8 = torch.float8_e4m3fn


def checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], **quantization: object
) -> Checkpoint:
    config = {"model_type": "llama", "quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    return open_checkpoint(path)


def random_fp8(*shape: int, dtype: torch.dtype = FP8) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(7)) * 100).to(dtype)


def random_scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    scales = torch.rand(shape, generator=torch.Generator().manual_seed(8)) * 0.01 + 1e-4
    return scales.to(dtype)


def fp8_of_transformers(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    converter = Fp8Dequantize(None)  # type: ignore[no-untyped-call]
    return converter._dequantize_one(weight, scales, output_dtype=torch.float32)


# weight shape, scale shape, weight_block_size
FP8_SHAPES = [
    ((256, 384), (2, 3), [128, 128]),
    ((300, 200), (3, 2), [128, 128]),  # smaller last blocks, like DeepSeek's kv_a_proj
    ((192, 128), (2, 1), [128, 128]),  # 128 + 64 rows: the configured size, not 192 / 2
    ((5, 3), (1, 1), [128, 128]),
    ((7, 9), (4, 3), [2, 4]),
    ((3, 6, 8), (3, 2, 2), [4, 4]),  # one grid an expert, its last rows a part of a block
    ((6, 8), (), None),
    ((6, 8), (1,), None),
    ((3, 6, 8), (3, 1, 1), None),
    ((6, 8), (6, 1), None),  # per row
]


@pytest.mark.parametrize(("shape", "scale_shape", "block"), FP8_SHAPES, ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_fp8_equals_transformers(
    tmp_path: Path,
    shape: tuple[int, ...],
    scale_shape: tuple[int, ...],
    block: list[int] | None,
    scale_dtype: torch.dtype,
) -> None:
    weight, scales = random_fp8(*shape), random_scales(*scale_shape, dtype=scale_dtype)
    if block is not None:
        expected = _dequantize_fp8_weight(weight, scales, block, torch.float32)
    else:
        expected = fp8_of_transformers(weight, scales)
    opened = checkpoint(
        tmp_path,
        {"a.weight": weight, "a.weight_scale_inv": scales, "norm": torch.ones(3)},
        quant_method="fp8",
        weight_block_size=block,
        activation_scheme="dynamic",
    )
    assert set(opened.tensors) == {"a.weight", "norm"}
    assert opened.is_block_scaled("a.weight") and not opened.is_block_scaled("norm")
    lazy = opened.tensors["a.weight"]
    assert lazy.shape == shape and lazy.dtype == "float32"
    assert torch.equal(lazy.read(), expected)
    joined = b"".join(bytes(piece) for piece in lazy.pieces(limit_bytes=52))
    assert joined == expected.numpy().tobytes()
    for start in range(0, lazy.numel, 37):
        stop = min(start + 101, lazy.numel)
        assert torch.equal(lazy.read_flat(start, stop), expected.reshape(-1)[start:stop])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_fp8_byte_decodes(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.arange(256, dtype=torch.uint8).reshape(16, 16).view(dtype)
    opened = checkpoint(
        tmp_path,
        {"a.weight": weight, "a.weight_scale_inv": torch.tensor(0.5)},
        quant_method="fp8",
    )
    torch.testing.assert_close(
        opened.tensors["a.weight"].read(), weight.float() * 0.5, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_power_of_two_scales(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = random_fp8(4, 64)
    scales = torch.tensor([[120, 127], [130, 1], [0, 254], [100, 128]], dtype=torch.uint8)
    opened = checkpoint(
        tmp_path,
        {"a.weight": weight, "a.weight_scale_inv": scales.view(dtype)},
        quant_method="fp8",
        weight_block_size=[1, 32],
        scale_fmt="ue8m0",
    )
    expected = fp8_of_transformers(weight, scales)
    assert torch.equal(opened.tensors["a.weight"].read(), expected)


def test_fp8_as_ministral_publishes_it(tmp_path: Path) -> None:
    """One bfloat16 scale a tensor, activation scales beside them, some modules left alone."""
    head = torch.randn(4, 8).bfloat16()
    opened = checkpoint(
        tmp_path,
        {
            "q.weight": random_fp8(4, 8),
            "q.weight_scale_inv": torch.tensor(0.25, dtype=torch.bfloat16),
            "q.activation_scale": torch.tensor(2.0, dtype=torch.bfloat16),
            "experts.up_proj": random_fp8(2, 4, 8),
            "experts.up_proj_scale_inv": random_scales(2, 1, 1),
            "experts.up_proj_activation_scale": torch.ones(2),
            "lm_head.weight": head,
        },
        quant_method="fp8",
        activation_scheme="static",
        weight_block_size=None,
        dequantize=False,
        modules_to_not_convert=["lm_head"],
    )
    assert set(opened.tensors) == {"q.weight", "experts.up_proj", "lm_head.weight"}
    assert torch.equal(opened.tensors["q.weight"].read(), random_fp8(4, 8).float() * 0.25)
    assert opened.tensors["lm_head.weight"].dtype == "bfloat16"
    assert torch.equal(opened.tensors["lm_head.weight"].read(), head)


def test_mxfp4_equals_transformers(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), dtype=torch.uint8, generator=generator)
    # 252 is the last exponent at which every four-bit value stays finite.
    scales = torch.randint(0, 253, (3, 10, 2), dtype=torch.uint8, generator=generator)
    opened = checkpoint(
        tmp_path,
        {
            "experts.gate_up_proj_blocks": blocks,
            "experts.gate_up_proj_scales": scales,
            "experts.gate_up_proj_bias": torch.ones(3, 10),
        },
        quant_method="mxfp4",
        modules_to_not_convert=["model.layers.*.self_attn", "lm_head"],
    )
    assert set(opened.tensors) == {"experts.gate_up_proj", "experts.gate_up_proj_bias"}
    assert opened.is_block_scaled("experts.gate_up_proj")
    lazy = opened.tensors["experts.gate_up_proj"]
    assert lazy.shape == (3, 10, 64) and lazy.dtype == "bfloat16"
    for dtype in (torch.float32, torch.bfloat16):  # bfloat16 loses nothing
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=dtype).transpose(1, 2)
        assert torch.equal(lazy.read().to(dtype), theirs)
    whole = lazy.read().reshape(-1)
    joined = b"".join(bytes(piece) for piece in lazy.pieces(limit_bytes=74))
    assert joined == whole.view(torch.uint8).numpy().tobytes()
    for start in range(0, lazy.numel, 41):
        stop = min(start + 90, lazy.numel)
        assert torch.equal(lazy.read_flat(start, stop), whole[start:stop])


def test_mxfp4_exact_at_both_ends(tmp_path: Path) -> None:
    """At the smallest and the largest exponents, each nibble is the number it stands for."""
    blocks = torch.arange(256, dtype=torch.uint8).reshape(16, 16).repeat(3, 1)
    scales = torch.tensor([0, 1, 252], dtype=torch.uint8).repeat_interleave(16)
    opened = checkpoint(
        tmp_path, {"x_blocks": blocks[:, None], "x_scales": scales[:, None]}, quant_method="mxfp4"
    )
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    table += [-value for value in table]
    nibbles = torch.stack([blocks & 15, blocks >> 4], dim=-1).reshape(48, 32).long()
    exact = torch.tensor(table, dtype=torch.float64)[nibbles]
    exact = exact * torch.exp2(scales.double() - 127)[:, None]
    assert torch.equal(opened.tensors["x"].read().double(), exact)


WRONG: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str]] = {
    "grid too small": (
        {"a.weight": random_fp8(256, 128), "a.weight_scale_inv": random_scales(1, 2)},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        r"a\.weight_scale_inv: shape \(1, 2\)",
    ),
    "grid of another rank": (
        {"a.weight": random_fp8(4, 8), "a.weight_scale_inv": random_scales(4)},
        {"quant_method": "fp8", "weight_block_size": None},
        r"a\.weight_scale_inv: shape \(4,\)",
    ),
    "grid of no size": (
        {"a.weight": random_fp8(4, 8), "a.weight_scale_inv": random_scales(0, 8)},
        {"quant_method": "fp8"},
        r"a\.weight_scale_inv: shape \(0, 8\)",
    ),
    "grid that does not divide": (
        {"a.weight": random_fp8(4, 8), "a.weight_scale_inv": random_scales(3, 1)},
        {"quant_method": "fp8"},
        r"weight_block_size is None",
    ),
    "vector": (
        {"a.weight": random_fp8(8), "a.weight_scale_inv": random_scales(1)},
        {"quant_method": "fp8"},
        r"a\.weight: FP8 of shape \(8,\)",
    ),
    "scales of integers": (
        {"a.weight": random_fp8(2, 4), "a.weight_scale_inv": torch.ones(1, dtype=torch.int64)},
        {"quant_method": "fp8"},
        "dtype I64 is no dtype of FP8 scales",
    ),
    "blocks of no size": (
        {"a": torch.ones(1)},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
        "weight_block_size must be null or two positive integers",
    ),
    "method": ({"a": torch.ones(1)}, {"quant_method": "hqq"}, "quant_method hqq is not read"),
    "key": (
        {"a": torch.ones(1)},
        {"quant_method": "fp8", "weight_zero_point": 1},
        "unknown key weight_zero_point",
    ),
    "mxfp4 groups": (
        {
            "x_blocks": torch.zeros(2, 3, 8, dtype=torch.uint8),
            "x_scales": torch.zeros(2, 3, dtype=torch.uint8),
        },
        {"quant_method": "mxfp4"},
        r"x_blocks: MXFP4 blocks \(2, 3, 8\)",
    ),
    "mxfp4 scales": (
        {
            "x_blocks": torch.zeros(2, 3, 16, dtype=torch.uint8),
            "x_scales": torch.zeros(2, 4, dtype=torch.uint8),
        },
        {"quant_method": "mxfp4"},
        r"scales \(2, 4\)",
    ),
    "mxfp4 twice": (
        {
            "x_blocks": torch.zeros(2, 3, 16, dtype=torch.uint8),
            "x_scales": torch.zeros(2, 3, dtype=torch.uint8),
            "x": torch.zeros(2, 96),
        },
        {"quant_method": "mxfp4"},
        "tensor x is there beside x_blocks",
    ),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_wrong_scales(tmp_path: Path, case: str) -> None:
    tensors, quantization, message = WRONG[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint(tmp_path, tensors, **quantization)
    assert "\n" not in str(caught.value)


UNEXPLAINED: list[tuple[torch.Tensor, dict[str, object] | None, str]] = [
    (random_fp8(2, 2), None, "dtype F8_E4M3 .* no quantization_config"),
    (random_fp8(2, 2), {"quant_method": "fp8"}, "dtype F8_E4M3 has no scales"),
    (random_fp8(2, 2), {"quant_method": "mxfp4"}, "dtype F8_E4M3 has no scales"),
    (torch.zeros(2, 2, dtype=torch.uint8), None, "dtype U8 .* no quantization_config"),
    (torch.zeros(2, 2, dtype=torch.int8), {"quant_method": "fp8"}, "dtype I8 has no scales"),
    (torch.zeros(2, 2, dtype=torch.float64), None, "dtype F64 would lose precision"),
]


@pytest.mark.parametrize(("tensor", "quantization", "message"), UNEXPLAINED)
def test_unexplained_dtypes_are_an_error_when_used(
    tmp_path: Path, tensor: torch.Tensor, quantization: dict[str, object] | None, message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    save_file({"odd": tensor, "norm": torch.ones(2)}, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    assert set(opened.tensors) == {"odd", "norm"} and "odd" in opened.tensors
    assert len(opened.tensors) == 2
    assert torch.equal(opened.tensors["norm"].read(), torch.ones(2))
    with pytest.raises(CheckpointError, match=rf"tensor odd: {message}"):
        opened.tensors["odd"]
