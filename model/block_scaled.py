"""Block-scaled storage in, plain lazy tensors out, dequantised piece by piece as they are read.

FP8 (DeepSeek, Qwen, Ministral): `X` of shape [..., N, K] beside `X_scale_inv`, one scale for each
block of rows and columns, or one for the tensor. The product is float32, as a float32 load in
transformers computes it. MXFP4 (gpt_oss): `X_blocks` [..., groups, 16] holds 32 four-bit floats a
group and `X_scales` [..., groups] a power of two for each. bfloat16 holds every such product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json, one_line
from edgewright.model.integer_scaled import (
    METHODS,
    IntegerScheme,
    integer_tensors,
    read_integer_scheme,
)
from edgewright.model.lazy import LazyTensor
from edgewright.model.safetensors_file import StoredTensor

FP8_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
_SCALE_DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E8M0": torch.float8_e8m0fnu,
    # transformers saves E8M0 exponents as bytes too.
    "U8": torch.float8_e8m0fnu,
}
_FP8_KEYS = {
    "quant_method", "weight_block_size", "activation_scheme", "modules_to_not_convert",
    "ignored_layers", "modules_to_convert", "fmt", "scale_fmt", "dequantize", "expert_dtype",
}  # fmt: skip
_MXFP4_KEYS = {"quant_method", "modules_to_not_convert", "dequantize"}
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_GROUP = 32


@dataclass(frozen=True)
class Fp8Scheme:
    """`block` is None where one scale serves the tensor or the grid of scales says its own size."""

    block: tuple[int, int] | None


@dataclass(frozen=True)
class Mxfp4Scheme:
    pass


Scheme = Fp8Scheme | Mxfp4Scheme | IntegerScheme | None


def read_scheme(config: Mapping[str, Json], origin: str) -> Scheme:
    """config.json's `quantization_config`. Tensors that have no scales are plain, so the lists of
    modules left unquantised need no reading."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    where = f"{origin}: quantization_config"
    if not isinstance(settings, dict):
        raise CheckpointError(f"{where} must be an object")
    method = settings.get("quant_method")
    for known_method in METHODS:
        if method == known_method:
            return read_integer_scheme(known_method, settings, where)
    if method not in ("fp8", "mxfp4"):
        raise CheckpointError(
            f"{where}: quant_method {one_line(str(method))} is not read; fp8, mxfp4,"
            f" {', '.join(METHODS)} are: use the unquantised checkpoint"
        )
    known = _FP8_KEYS if method == "fp8" else _MXFP4_KEYS
    if unknown := sorted(settings.keys() - known):
        raise CheckpointError(
            f"{where}: unknown key {one_line(unknown[0])}; {method} knows"
            f" {', '.join(sorted(known))}"
        )
    if method == "mxfp4":
        return Mxfp4Scheme()
    return Fp8Scheme(_block_size(settings.get("weight_block_size"), where))


def _block_size(value: Json, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2:
        rows, columns = value
        if type(rows) is int and type(columns) is int and rows > 0 and columns > 0:
            return rows, columns
    raise CheckpointError(f"{where}: weight_block_size must be null or two positive integers")


def dequantised(
    stored: Mapping[str, StoredTensor], scheme: Scheme
) -> tuple[dict[str, LazyTensor], set[str]]:
    """The tensors that scales explain, by plain name, and the stored names these replace."""
    if isinstance(scheme, Fp8Scheme):
        return _fp8_tensors(stored, scheme)
    if isinstance(scheme, Mxfp4Scheme):
        return _mxfp4_tensors(stored)
    if isinstance(scheme, IntegerScheme):
        return integer_tensors(stored, scheme)
    return {}, set()


def _fp8_tensors(
    stored: Mapping[str, StoredTensor], scheme: Fp8Scheme
) -> tuple[dict[str, LazyTensor], set[str]]:
    found: dict[str, LazyTensor] = {}
    replaced: set[str] = set()
    for name, weight in stored.items():
        scales = stored.get(f"{name}_scale_inv")
        if weight.dtype not in FP8_DTYPES or scales is None:
            continue
        found[name] = _fp8_tensor(weight, scales, scheme.block)
        replaced |= {name, scales.name}
        # Scales for quantising activations (activation_scheme static): unused, as weights are
        # dequantised; one beside each weight, named after the module or after the parameter.
        stem = name.removesuffix("weight") if name.endswith(".weight") else f"{name}_"
        replaced |= {f"{stem}activation_scale"} & stored.keys()
    return found, replaced


def _fp8_tensor(
    weight: StoredTensor, scales: StoredTensor, block: tuple[int, int] | None
) -> LazyTensor:
    if scales.dtype not in _SCALE_DTYPES:
        raise CheckpointError(
            f"{scales.path}: tensor {scales.name}: dtype {scales.dtype} is no dtype of FP8 scales"
        )
    if len(weight.shape) < 2 or 0 in weight.shape:
        raise CheckpointError(
            f"{weight.path}: tensor {weight.name}: FP8 of shape {weight.shape}; a matrix is needed"
        )
    *leading, height, width = weight.shape
    if scales.shape in ((), (1,), (1, 1)):
        height *= math.prod(leading)  # one scale, so all the matrices are one
        block, grid = (height, width), (1, 1)
    else:
        grid = _grid(scales.shape, leading)
        # Without a configured size the grid gives it, as in transformers: per row, per expert, ...
        if block is None and all(grid) and not (height % grid[0] or width % grid[1]):
            block = (height // grid[0], width // grid[1])
        # A last block may be smaller: DeepSeek's kv_a_proj has 4.5 blocks of rows.
        if block is None or grid != (-(-height // block[0]), -(-width // block[1])):
            raise CheckpointError(
                f"{scales.path}: tensor {scales.name}: shape {scales.shape} does not give one scale"
                f" for each block of {weight.name} {weight.shape}; weight_block_size is {block}"
            )
    return _Fp8Tensor(
        weight.name, weight.shape, "float32", weight, scales, (height, width), block, grid
    )


def _grid(shape: tuple[int, ...], leading: list[int]) -> tuple[int, int]:
    """Rows and columns of scales of each matrix; (0, 0) fits nothing."""
    if len(shape) != len(leading) + 2 or [*shape[:-2]] != leading:
        return 0, 0
    return shape[-2], shape[-1]


@dataclass(frozen=True, eq=False)
class _Fp8Tensor(LazyTensor):
    weight: StoredTensor
    scales: StoredTensor
    matrix: tuple[int, int]
    block: tuple[int, int]
    grid: tuple[int, int]

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        if start == stop:
            return torch.empty(0)
        width = self.matrix[1]
        first, last = start // width, -(-stop // width)
        raw = self.weight.read_bytes(first * width, last * width)
        values = raw.view(FP8_DTYPES[self.weight.dtype]).float().reshape(-1, width)
        scales = self._row_scales(first, last)  # [rows, blocks of columns]
        columns = self.block[1]
        whole = width // columns
        body = values[:, : whole * columns].view(len(values), whole, columns)
        body.mul_(scales[:, :whole, None])
        if whole * columns < width:
            values[:, whole * columns :].mul_(scales[:, whole:])
        return values.reshape(-1)[start - first * width : stop - first * width]

    def _row_scales(self, first: int, last: int) -> torch.Tensor:
        """The scales of rows first..last, counted through all matrices."""
        row = torch.arange(first, last)
        height = self.matrix[0]
        index = row // height * self.grid[0] + row % height // self.block[0]
        low, high = int(index[0]), int(index[-1]) + 1
        dtype, columns = _SCALE_DTYPES[self.scales.dtype], self.grid[1]
        raw = self.scales.read_bytes(
            low * columns * dtype.itemsize, high * columns * dtype.itemsize
        )
        return raw.view(dtype).float().reshape(-1, columns)[index - low]


def _mxfp4_tensors(
    stored: Mapping[str, StoredTensor],
) -> tuple[dict[str, LazyTensor], set[str]]:
    found: dict[str, LazyTensor] = {}
    replaced: set[str] = set()
    for name, blocks in stored.items():
        plain = name.removesuffix("_blocks")
        scales = stored.get(f"{plain}_scales")
        if plain == name or blocks.dtype != "U8" or scales is None or scales.dtype != "U8":
            continue
        fits = len(blocks.shape) >= 2 and blocks.shape[-1] == _GROUP // 2
        if not fits or blocks.shape[:-1] != scales.shape:
            raise CheckpointError(
                f"{blocks.path}: tensor {name}: MXFP4 blocks {blocks.shape} beside scales"
                f" {scales.shape}; [..., groups, {_GROUP // 2}] beside [..., groups] is needed"
            )
        if plain in stored:
            raise CheckpointError(f"{blocks.path}: tensor {plain} is there beside {name}")
        shape = (*blocks.shape[:-2], blocks.shape[-2] * _GROUP)
        found[plain] = _Mxfp4Tensor(plain, shape, "bfloat16", blocks, scales)
        replaced |= {name, scales.name}
    return found, replaced


def _byte_pairs() -> torch.Tensor:
    """[256] int32: the two bfloat16 values of each byte, the low nibble's first."""
    values = torch.tensor([*_FP4_VALUES, *(-value for value in _FP4_VALUES)], dtype=torch.bfloat16)
    byte = torch.arange(256)
    return torch.stack([values[byte & 15], values[byte >> 4]], dim=1).view(torch.int32).squeeze(1)


_BYTE_PAIRS = _byte_pairs()


@dataclass(frozen=True, eq=False)
class _Mxfp4Tensor(LazyTensor):
    blocks: StoredTensor
    scales: StoredTensor

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        first, last = start // _GROUP, -(-stop // _GROUP)
        half = _GROUP // 2
        raw = self.blocks.read_bytes(first * half, last * half)
        values = _BYTE_PAIRS.index_select(0, raw.int()).view(torch.bfloat16)
        exponents = self.scales.read_bytes(first, last)
        # 2^128 of the byte 255 becomes infinity, and every group under it infinite or NaN, which
        # the exporter then warns of.
        scales = torch.exp2(exponents.float() - 127.0).bfloat16()
        values.reshape(-1, _GROUP).mul_(scales[:, None])
        return values[start - first * _GROUP : stop - first * _GROUP]
