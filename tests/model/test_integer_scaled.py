"""GPTQ, AWQ and compressed-tensors storage: read as their own tools unpack it, codes and all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.checkpoint import Checkpoint, open_checkpoint
from edgewright.model.lazy import concat, rows, stack, transpose_last_two
from edgewright.model.stored_codes import stored_codes
from tests.integer_storage import Matrix, awq, gptq

Tensors = Mapping[str, torch.Tensor]


def checkpoint(path: Path, tensors: Tensors, **quantization: object) -> Checkpoint:
    config = {"model_type": "llama", "quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path / "model.safetensors")
    return open_checkpoint(path)


SHAPES = [(16, 256, 128), (40, 192, 64), (8, 320, 32), (24, 96, 96), (16, 144, 128)]


@pytest.mark.parametrize(("n", "k", "size"), SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq(n: int, k: int, size: int, bits: int, form: str, tmp_path: Path) -> None:
    matrix = Matrix(n, k, size, bits)
    tensors = gptq(matrix, int(form == "gptq"))
    settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": form}
    found = checkpoint(tmp_path, tensors, **settings).tensors["x.weight"]
    torch.testing.assert_close(found.read(), matrix.values, rtol=0, atol=0)
    torch.testing.assert_close(found.read_rows(3, 6), matrix.values[3:6], rtol=0, atol=0)


@pytest.mark.parametrize(("n", "k", "size"), SHAPES)
def test_awq(n: int, k: int, size: int, tmp_path: Path) -> None:
    matrix = Matrix(n, k, size)
    settings = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}
    found = checkpoint(tmp_path, awq(matrix), **settings).tensors["x.weight"]
    torch.testing.assert_close(found.read(), matrix.values, rtol=0, atol=0)
    torch.testing.assert_close(found.read_rows(3, 6), matrix.values[3:6], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n", "k", "size"), [(16, 256, 128), (13, 192, 64), (24, 100, -1)])
def test_compressed_tensors(
    n: int, k: int, size: int, symmetric: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    matrix = Matrix(n, k, k if size < 0 else size, dtype=dtype)
    strategy = "channel" if size < 0 else "group"
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None if size < 0 else size,
    }
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    state = {"weight": matrix.values.to(dtype), "weight_scale": matrix.scales}
    if symmetric:
        state["weight"] = ((matrix.codes - 8) * matrix.scales[:, matrix.group_of]).to(dtype)
    else:
        state["weight_zero_point"] = (matrix.zeros - 8).to(torch.int8)
    compressed = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(compressed, scheme)["weight"]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    found = checkpoint(
        tmp_path,
        {f"x.{name}": tensor for name, tensor in compressed.items()},
        quant_method="compressed-tensors",
        format="pack-quantized",
        config_groups={"group_0": group},
    ).tensors["x.weight"]
    # Its product is rounded to the scales' dtype, ours is not.
    torch.testing.assert_close(found.read().to(dtype), expected, rtol=1e-6, atol=0)
    codes = stored_codes(found)
    assert codes is not None
    read = torch.from_numpy(codes[0].read(0, n).dequantised())
    torch.testing.assert_close(read, found.read(), rtol=0, atol=0)


@pytest.mark.parametrize(("n", "k", "size"), [*SHAPES, (16, 512, 256), (16, 384, 384)])
def test_codes_are_the_values(n: int, k: int, size: int, tmp_path: Path) -> None:
    matrix = Matrix(n, k, size)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": size}
    weight = checkpoint(tmp_path, gptq(matrix), **settings).tensors["x.weight"]
    codes = stored_codes(weight)
    assert codes is not None and codes[0].order is None
    found = codes[0].read(2, n - 1)
    assert torch.equal(torch.from_numpy(found.codes).long(), matrix.codes[2 : n - 1])
    torch.testing.assert_close(
        torch.from_numpy(found.dequantised()), matrix.values[2 : n - 1], rtol=0, atol=0
    )


@pytest.mark.parametrize(("k", "size"), [(256, 64), (144, 128), (320, 32)])
def test_columns_quantised_out_of_order_come_in_order(k: int, size: int, tmp_path: Path) -> None:
    matrix = Matrix(16, k, size)
    shuffle = torch.randperm(k, generator=torch.Generator().manual_seed(1))
    matrix.group_of = matrix.group_of[shuffle]
    settings = {"quant_method": "gptq", "bits": 4, "group_size": size, "desc_act": True}
    weight = checkpoint(tmp_path, gptq(matrix), **settings).tensors["x.weight"]
    torch.testing.assert_close(weight.read(), matrix.values, rtol=0, atol=0)
    codes = stored_codes(weight)
    assert codes is not None and codes[0].order is not None
    found = torch.from_numpy(codes[0].read(0, 16).dequantised())
    torch.testing.assert_close(found, matrix.values[:, codes[0].order], rtol=0, atol=0)


def test_groups_of_uneven_size_leave_plain_values(tmp_path: Path) -> None:
    matrix = Matrix(16, 256, 64)
    matrix.group_of[:3] = torch.tensor([1, 0, 2])
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True}
    weight = checkpoint(tmp_path, gptq(matrix), **settings).tensors["x.weight"]
    torch.testing.assert_close(weight.read(), matrix.values, rtol=0, atol=0)
    assert stored_codes(weight) is None


def test_slices_joins_and_stacks_keep_their_codes(tmp_path: Path) -> None:
    matrix = Matrix(48, 128, 64)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64}
    weight = checkpoint(tmp_path, awq(matrix), **settings).tensors["x.weight"]
    parts = [rows(weight, 0, 16), rows(weight, 16, 48)]
    for made in (concat(parts[::-1]), rows(concat(parts[::-1]), 8, 40), stack([parts[0]] * 2)):
        codes = stored_codes(made)
        assert codes is not None
        found = [torch.from_numpy(each.read(0, each.rows).dequantised()) for each in codes]
        torch.testing.assert_close(torch.cat(found), made.read().flatten(0, -2), rtol=0, atol=0)
    assert stored_codes(transpose_last_two(weight)) is None


def test_scales_that_16_bits_do_not_hold_leave_plain_values(tmp_path: Path) -> None:
    matrix = Matrix(16, 128, 64, dtype=torch.float32)
    matrix.scales *= 1 + 2**-20
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    weight = checkpoint(tmp_path, gptq(matrix), **settings).tensors["x.weight"]
    assert stored_codes(weight) is None
    torch.testing.assert_close(weight.read(), matrix.values, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "gptq", "bits": 3}, "bits 3 are not read; 4 or 8 are"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "form marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "form gemv"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "pack-quantized is"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups"),
        ({"quant_method": "hqq"}, "quant_method hqq is not read"),
    ],
)
def test_other_forms_are_refused(settings: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says):
        checkpoint(tmp_path, gptq(Matrix(8, 64, 64)), **settings)


@pytest.mark.parametrize("broken", ["x.qzeros", "x.scales", "x.g_idx", "x.qweight"])
def test_misfitting_parts_are_refused(broken: str, tmp_path: Path) -> None:
    tensors = gptq(Matrix(16, 128, 64))
    tensors[broken] = tensors[broken][:-1].contiguous()
    with pytest.raises(CheckpointError, match=r"x\.(qzeros|scales|g_idx|qweight)"):
        found = checkpoint(tmp_path, tensors, quant_method="gptq", bits=4, group_size=64)
        found.tensors["x.weight"].read()


def test_a_missing_part_and_a_plain_twin_are_refused(tmp_path: Path) -> None:
    tensors = gptq(Matrix(16, 128, 64))
    twin = {**tensors, "x.weight": torch.zeros(16, 128)}
    with pytest.raises(CheckpointError, match=r"x\.weight is there beside x\.qweight"):
        checkpoint(tmp_path, twin, quant_method="gptq", bits=4)
    del tensors["x.scales"]
    with pytest.raises(CheckpointError, match=r"x\.qweight has no scales beside it"):
        checkpoint(tmp_path, tensors, quant_method="gptq", bits=4)


def test_a_column_of_no_group_is_refused(tmp_path: Path) -> None:
    tensors = gptq(Matrix(16, 128, 64))
    tensors["x.g_idx"][5] = 2
    found = checkpoint(tmp_path, tensors, quant_method="gptq", bits=4)
    with pytest.raises(CheckpointError, match="groups are 0 to 1"):
        found.tensors["x.weight"].read()
