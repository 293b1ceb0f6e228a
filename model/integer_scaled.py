"""Integer checkpoints in (GPTQ, AWQ, compressed-tensors), lazy tensors out that still know the
codes they are made of.

Each packs 4- or 8-bit codes into int32s, lowest bits first, beside one scale for each row and group
of columns: w[n][k] = scale[n][g] * (code[n][k] - zero[n][g]). They differ in what lies along what:

- GPTQ: `qweight` [K/8, N], `qzeros` [groups, N/8] (one less than the zero point, but in "gptq_v2"),
  `scales` [groups, N], `g_idx` [K], each column's group, which need not be in order.
- AWQ: `qweight` [K, N/8] and `qzeros` [groups, N/8], the eight columns of an int32 interleaved;
  `scales` [groups, N].
- compressed-tensors, "pack-quantized": `weight_packed` [N, K/8], `weight_zero_point` [N/8, groups]
  if any, both offset by half the range; `weight_scale` [N, groups]; `weight_shape`; and
  `weight_g_idx` [K] where columns were quantised out of order.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

import torch

from edgewright.artifacts.errors import CheckpointError
from edgewright.artifacts.json_text import Json, one_line
from edgewright.model.lazy import LazyTensor
from edgewright.model.safetensors_file import StoredTensor

Method = Literal["gptq", "awq", "compressed-tensors"]
METHODS: tuple[Method, ...] = ("gptq", "awq", "compressed-tensors")
WIDTHS = (4, 8)
_SCALE_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
# Which of an int32's eight columns lies in its i-th four bits.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class IntegerScheme:
    """`bits` is None where config.json may give several and the shapes tell."""

    method: Method
    bits: int | None
    zero_offset: int  # what is added to a stored zero point
    group_sizes: tuple[int, ...]  # those that config.json names

    def group_size(self, columns: int, groups: int) -> int:
        """Named, where it fits: a short last group leaves the shapes open."""
        named = [size for size in self.group_sizes if -(-columns // size) == groups]
        return named[0] if named else -(-columns // groups)


def read_integer_scheme(method: Method, settings: Mapping[str, Json], where: str) -> IntegerScheme:
    """Tools leave all kinds of notes beside these keys; what the tensors mean is in these, and
    every shape is checked against them."""
    if method == "compressed-tensors":
        return IntegerScheme(method, None, 0, _compressed_tensors_groups(settings, where))
    bits = settings.get("bits", settings.get("w_bit"))
    if bits not in WIDTHS or isinstance(bits, bool):
        raise CheckpointError(
            f"{where}: bits {one_line(str(bits))} are not read; {_or(WIDTHS)} are: use the"
            " unquantised checkpoint"
        )
    assert isinstance(bits, int)
    form = settings.get("checkpoint_format", settings.get("format", settings.get("version")))
    known = {"gptq": (None, "gptq", "gptq_v2"), "awq": (None, "gemm", "GEMM")}[method]
    if form not in known or (method == "awq" and bits != 4):
        raise CheckpointError(
            f"{where}: {method} in the form {one_line(str(form))} with {bits} bits is not read;"
            f" {_or([name for name in known if name])} is"
        )
    sizes = _positive(settings.get("group_size", settings.get("q_group_size")))
    return IntegerScheme(method, bits, int(method == "gptq" and form != "gptq_v2"), sizes)


def _positive(size: Json) -> tuple[int, ...]:
    """-1 and null mean one group a row."""
    return (size,) if isinstance(size, int) and size > 0 else ()


def _compressed_tensors_groups(settings: Mapping[str, Json], where: str) -> tuple[int, ...]:
    sizes: tuple[int, ...] = ()
    if settings.get("format") != "pack-quantized":
        found = one_line(str(settings.get("format")))
        raise CheckpointError(f"{where}: format {found} is not read; pack-quantized is")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{where}: config_groups must say how the weights are quantised")
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(group, dict) or not isinstance(weights, dict):
            raise CheckpointError(f"{where}: config_groups.{one_line(name)} describes no weights")
        if weights.get("type", "int") != "int" or weights.get("num_bits") not in WIDTHS:
            raise CheckpointError(
                f"{where}: config_groups.{one_line(name)}: integers of {_or(WIDTHS)} bits are read"
            )
        if group.get("input_activations") is not None:
            raise CheckpointError(
                f"{where}: config_groups.{one_line(name)}: quantised activations are not read"
            )
        sizes += _positive(weights.get("group_size"))
    return sizes


def _or(values: object) -> str:
    return " or ".join(map(str, values))  # type: ignore[call-overload]


def integer_tensors(
    stored: Mapping[str, StoredTensor], scheme: IntegerScheme
) -> tuple[dict[str, LazyTensor], set[str]]:
    """The weights that codes stand for, by plain name, and the stored names these replace."""
    kind = _KINDS[scheme.method]
    found: dict[str, LazyTensor] = {}
    replaced: set[str] = set()
    for name in stored:
        stem = name.removesuffix(kind.codes_suffix)
        if stem == name:
            continue
        if (plain := f"{stem}.weight") in stored:
            raise CheckpointError(f"{stored[name].path}: tensor {plain} is there beside {name}")
        parts = {
            suffix: stored[f"{stem}{suffix}"]
            for suffix in kind.suffixes
            if f"{stem}{suffix}" in stored
        }
        found[plain] = kind.over(plain, parts, scheme)
        replaced |= {tensor.name for tensor in parts.values()}
    return found, replaced


@dataclass(frozen=True, eq=False)
class IntegerTensor(LazyTensor):
    """[N, K] in float32. `order`: the columns of each group one after the other, or None where
    they lie so already."""

    parts: Mapping[str, StoredTensor]
    bits: int
    zero_offset: int
    group_size: int

    codes_suffix: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def over(
        cls, name: str, parts: Mapping[str, StoredTensor], scheme: IntegerScheme
    ) -> IntegerTensor:
        """Of parts that fit together."""

    @abstractmethod
    def codes(self, start: int, stop: int) -> torch.Tensor:
        """uint8 [stop - start, K], the columns as the model has them."""

    @property
    @abstractmethod
    def scales(self) -> torch.Tensor:
        """[N, groups] in the dtype they are stored in."""

    @property
    @abstractmethod
    def zeros(self) -> torch.Tensor:
        """uint8 [N, groups]."""

    @property
    def groups(self) -> int:
        return int(self.scales.shape[1])

    @cached_property
    def group_of(self) -> torch.Tensor:
        """[K], each column's group."""
        index = next((self.parts[s] for s in self.parts if s.endswith("g_idx")), None)
        columns = self.shape[1]
        if index is None:
            return torch.arange(columns) // self.group_size
        if index.dtype not in ("I32", "I64") or index.shape != (columns,):
            raise _misfit(index, f"one integer for each of {columns} columns is needed")
        raw = index.read_bytes(0, index.nbytes)
        found = raw.view(torch.int32 if index.dtype == "I32" else torch.int64).long()
        if columns and not 0 <= int(found.min()) <= int(found.max()) < self.groups:
            raise _misfit(index, f"groups are 0 to {self.groups - 1}")
        return found

    @cached_property
    def order(self) -> torch.Tensor | None:
        if torch.equal(self.group_of, torch.arange(self.shape[1]) // self.group_size):
            return None
        return torch.argsort(self.group_of, stable=True)

    def read_flat(self, start: int, stop: int) -> torch.Tensor:
        if start == stop:
            return torch.empty(0)
        columns = self.shape[1]
        first, last = start // columns, -(-stop // columns)
        group = self.group_of
        values = self.codes(first, last).float() - self.zeros[first:last].float()[:, group]
        values *= self.scales[first:last].float()[:, group]
        return values.reshape(-1)[start - first * columns : stop - first * columns]


class _Gptq(IntegerTensor):
    codes_suffix = ".qweight"
    suffixes: ClassVar[tuple[str, ...]] = (".qweight", ".qzeros", ".scales", ".g_idx")

    @classmethod
    def over(
        cls, name: str, parts: Mapping[str, StoredTensor], scheme: IntegerScheme
    ) -> IntegerTensor:
        assert scheme.bits is not None
        packed, scales = (
            _matrix(parts, ".qweight", "I32"),
            _matrix(parts, ".scales", *_SCALE_DTYPES),
        )
        zeros, each = _matrix(parts, ".qzeros", "I32"), 32 // scheme.bits
        shape = (packed.shape[1], packed.shape[0] * each)
        _check(zeros, (scales.shape[0], -(-shape[0] // each)))
        size = _checked_group_size(scales, scales.shape[::-1], shape, scheme)
        return cls(name, shape, "float32", parts, scheme.bits, scheme.zero_offset, size)

    def codes(self, start: int, stop: int) -> torch.Tensor:
        return _unpacked(_whole(self.parts[".qweight"])[:, start:stop].T, self.bits)

    @cached_property
    def scales(self) -> torch.Tensor:
        return _whole(self.parts[".scales"]).T.contiguous()

    @cached_property
    def zeros(self) -> torch.Tensor:
        packed = _unpacked(_whole(self.parts[".qzeros"]), self.bits)[:, : self.shape[0]]
        return (packed + self.zero_offset).T.contiguous()


class _Awq(_Gptq):
    suffixes = (".qweight", ".qzeros", ".scales")

    @classmethod
    def over(
        cls, name: str, parts: Mapping[str, StoredTensor], scheme: IntegerScheme
    ) -> IntegerTensor:
        packed, scales = (
            _matrix(parts, ".qweight", "I32"),
            _matrix(parts, ".scales", *_SCALE_DTYPES),
        )
        shape = (packed.shape[1] * 8, packed.shape[0])
        _check(_matrix(parts, ".qzeros", "I32"), (scales.shape[0], packed.shape[1]))
        size = _checked_group_size(scales, scales.shape[::-1], shape, scheme)
        return cls(name, shape, "float32", parts, 4, 0, size)

    def codes(self, start: int, stop: int) -> torch.Tensor:
        first, last = start // 8, -(-stop // 8)
        codes = _deinterleaved(_unpacked(_whole(self.parts[".qweight"])[:, first:last], 4))
        return codes[:, start - first * 8 : stop - first * 8].T.contiguous()

    @cached_property
    def zeros(self) -> torch.Tensor:
        return _deinterleaved(_unpacked(_whole(self.parts[".qzeros"]), 4)).T.contiguous()


class _CompressedTensors(IntegerTensor):
    codes_suffix = ".weight_packed"
    suffixes = (
        ".weight_packed",
        ".weight_scale",
        ".weight_shape",
        ".weight_zero_point",
        ".weight_g_idx",
    )

    @classmethod
    def over(
        cls, name: str, parts: Mapping[str, StoredTensor], scheme: IntegerScheme
    ) -> IntegerTensor:
        packed = _matrix(parts, ".weight_packed", "I32")
        scales = _matrix(parts, ".weight_scale", *_SCALE_DTYPES)
        shape = _stored_shape(parts, packed)
        widths = [w for w in WIDTHS if packed.shape == (shape[0], -(-shape[1] * w // 32))]
        if not widths:
            raise _misfit(packed, f"codes of {_or(WIDTHS)} bits for {shape} are needed")
        if ".weight_zero_point" in parts:
            zeros = _matrix(parts, ".weight_zero_point", "I32")
            _check(zeros, (-(-shape[0] * widths[0] // 32), scales.shape[1]))
        size = _checked_group_size(scales, scales.shape, shape, scheme)
        return cls(name, shape, "float32", parts, widths[0], 0, size)

    def codes(self, start: int, stop: int) -> torch.Tensor:
        packed = self.parts[".weight_packed"]
        width = packed.shape[1] * 4
        raw = packed.read_bytes(start * width, stop * width).view(torch.int32)
        return _unpacked(raw.view(stop - start, -1), self.bits)[:, : self.shape[1]]

    @cached_property
    def scales(self) -> torch.Tensor:
        return _whole(self.parts[".weight_scale"])

    @cached_property
    def zeros(self) -> torch.Tensor:
        if ".weight_zero_point" not in self.parts:
            return torch.full(self.scales.shape, 1 << (self.bits - 1), dtype=torch.uint8)
        packed = _whole(self.parts[".weight_zero_point"])
        return _unpacked(packed.T, self.bits)[:, : self.shape[0]].T.contiguous()


_KINDS: Mapping[Method, type[IntegerTensor]] = {
    "gptq": _Gptq,
    "awq": _Awq,
    "compressed-tensors": _CompressedTensors,
}


def _unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [R, C] as uint8 [R, C * 32 / bits]."""
    raw = packed.contiguous().view(torch.uint8)  # little-endian: the lowest bits come first
    if bits == 8:
        return raw
    return torch.stack([raw & 15, raw >> 4], dim=-1).flatten(-2)


def _deinterleaved(codes: torch.Tensor) -> torch.Tensor:
    place = torch.empty(8, dtype=torch.long)
    place[list(_AWQ_ORDER)] = torch.arange(8)
    return codes.view(len(codes), -1, 8)[:, :, place].flatten(1)


@lru_cache(maxsize=4)
def _whole(tensor: StoredTensor) -> torch.Tensor:
    """A stored matrix; the last few are kept, because they are read a band of rows at a time."""
    dtype = torch.int32 if tensor.dtype == "I32" else _SCALE_DTYPES[tensor.dtype]
    return tensor.read_bytes(0, tensor.nbytes).view(dtype).view(tensor.shape)


def _matrix(parts: Mapping[str, StoredTensor], suffix: str, *dtypes: str) -> StoredTensor:
    tensor = parts.get(suffix)
    if tensor is None:
        beside = next(iter(parts.values()))
        raise CheckpointError(f"{beside.path}: tensor {beside.name} has no {suffix[1:]} beside it")
    if tensor.dtype not in dtypes or len(tensor.shape) != 2 or 0 in tensor.shape:
        raise _misfit(tensor, f"a matrix of {_or(dtypes)} is needed")
    return tensor


def _stored_shape(parts: Mapping[str, StoredTensor], packed: StoredTensor) -> tuple[int, int]:
    tensor = parts.get(".weight_shape")
    if tensor is None or tensor.dtype not in ("I64", "I32") or tensor.shape != (2,):
        raise CheckpointError(f"{packed.path}: tensor {packed.name} has no weight_shape beside it")
    raw = tensor.read_bytes(0, tensor.nbytes)
    rows, columns = raw.view(torch.int64 if tensor.dtype == "I64" else torch.int32).tolist()
    return rows, columns


def _check(tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise _misfit(tensor, f"{shape} is needed")


def _checked_group_size(
    tensor: StoredTensor, found: tuple[int, ...], shape: tuple[int, int], scheme: IntegerScheme
) -> int:
    """`found` is [N, groups]; the last group may be short."""
    rows, columns = shape
    size = scheme.group_size(columns, found[1])
    if found[0] != rows or -(-columns // size) != found[1]:
        raise _misfit(tensor, f"one scale for each of {rows} rows and group of columns is needed")
    return size


def _misfit(tensor: StoredTensor, needed: str) -> CheckpointError:
    return CheckpointError(
        f"{tensor.path}: tensor {tensor.name}: {tensor.dtype} of shape {tensor.shape}; {needed}"
    )
