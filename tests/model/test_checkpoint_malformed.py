"""Safetensors files that are wrong, by a table and by seeded damage: one error, never a crash."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import deserialize
from safetensors.torch import save, save_file

from edgewright.artifacts.errors import CheckpointError
from edgewright.model.checkpoint import SINGLE_NAME, open_checkpoint
from edgewright.model.safetensors_file import DTYPE_BITS, open_safetensors

Entry = dict[str, object]


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> Entry:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


EIGHT = bytes(8)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a safetensors file but empty"),
    "seven bytes": (bytes(7), "not a safetensors file"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "header of nothing": (bytes(8), "claims a header of 0 bytes"),
    "header beyond the file": (file_of({})[:-1], "truncated: 9 bytes"),
    "header of 2^63": (b"\xff" * 8 + b"{}", "claims a header of 18446744073709551615"),
    "pickle": (b"\x80\x02}q\x00." + bytes(40), "claims a header of"),
    "header not JSON": (file_of(b"{nonsense"), "header: not valid JSON"),
    "header a list": (file_of([]), "header: a JSON object is required"),
    "header not UTF-8": (file_of(b'{"\xff": 1}'), "header: not UTF-8 text at byte 2"),
    "header deep": (file_of(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "number too long": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "a number of 5000 digits"),
    "name twice": (
        file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), EIGHT),
        "the key a appears twice",
    ),
    "metadata": (file_of({"__metadata__": {"a": 1}}), "__metadata__ must map"),
    "entry a number": (file_of({"a": 1}), "tensor a: its entry must hold"),
    "entry lacks shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "must hold"),
    "entry has more": (file_of({"a": {**entry(), "x": 1}}, EIGHT), "must hold"),
    "dtype unknown": (file_of({"a": entry("F31")}, EIGHT), "tensor a: unknown dtype F31"),
    "dtype a list": (file_of({"a": entry(["F32"])}, EIGHT), "tensor a: unknown dtype"),
    "dtype of two lines": (file_of({"a": entry("F\n32")}, EIGHT), r"unknown dtype F\\n32"),
    "shape negative": (file_of({"a": entry(shape=[-2, -1])}, EIGHT), "tensor a: its shape"),
    "shape of floats": (file_of({"a": entry(shape=[2.0])}, EIGHT), "tensor a: its shape"),
    "shape of booleans": (file_of({"a": entry(shape=[True, 2])}, EIGHT), "tensor a: its shape"),
    "shape a number": (file_of({"a": entry(shape=2)}, EIGHT), "tensor a: its shape"),
    "shape too deep": (file_of({"a": entry(shape=[1] * 16 + [2])}, EIGHT), "at most 16"),
    "shape of 2^63": (file_of({"a": entry(shape=[1 << 63, 0])}, EIGHT), "tensor a: its shape"),
    "shape overflows": (
        file_of({"a": entry(shape=[1 << 62, 4, 2])}, EIGHT),
        r"takes 147573952589676412928 bytes",
    ),
    "shape too large": (file_of({"a": entry(shape=[3])}, EIGHT), "takes 12 bytes"),
    "shape too small": (file_of({"a": entry(shape=[1])}, EIGHT), "takes 4 bytes"),
    "offsets of one": (file_of({"a": entry(offsets=[8])}, EIGHT), "a begin and an end"),
    "offsets reversed": (file_of({"a": entry(offsets=[8, 0])}, EIGHT), "a begin and an end"),
    "offsets negative": (file_of({"a": entry(offsets=[-8, 0])}, EIGHT), "a begin and an end"),
    "data cut": (file_of({"a": entry()}, EIGHT[:-1]), "truncated: .* tensor a ends at"),
    "data follows": (file_of({"a": entry()}, EIGHT + b"x"), "1 bytes follow the last tensor"),
    "data without tensors": (file_of({}, b"x"), "1 bytes follow"),
    "hole first": (file_of({"a": entry(offsets=[8, 16])}, bytes(16)), "tensor a: .* a hole"),
    "hole between": (
        file_of({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
        "tensor b: .* follows a hole",
    ),
    "overlap": (
        file_of({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
        "tensor b: .* overlaps",
    ),
    "same range": (file_of({"a": entry(), "b": entry()}, EIGHT), "tensor b: .* overlaps"),
    "name empty": (file_of({"": entry()}, EIGHT), "1 to 200 printable"),
    "name of two lines": (file_of({"a\nb": entry()}, EIGHT), r"tensor a\\nb: the name"),
    "name half a character": (file_of({"\ud800": entry()}, EIGHT), "the name must be"),
    "name too long": (file_of({"a" * 201: entry()}, EIGHT), "1 to 200 printable"),
    "half a byte": (file_of({"a": entry("F4", [3], [0, 2])}, bytes(2)), "takes 2 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED, ids=str)
def test_malformed_files(tmp_path: Path, case: str) -> None:
    data, message = MALFORMED[case]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_safetensors(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_the_format_is_known(tmp_path: Path, dtype: str) -> None:
    size = DTYPE_BITS[dtype]  # bytes that eight elements take
    path = tmp_path / "weights.safetensors"
    path.write_bytes(file_of({"a": entry(dtype, [2, 4], [0, size])}, bytes(size)))
    stored = open_safetensors(path).tensors["a"]
    assert stored.dtype == dtype and stored.nbytes == size
    assert stored.read_bytes(0, size).numel() == size


def test_padding_of_the_header_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    header = json.dumps({"a": entry()}).encode() + b" " * 13
    path.write_bytes(file_of(header, EIGHT))
    assert torch.equal(open_safetensors(path).tensors["a"].read_bytes(0, 8), torch.zeros(8).byte())


def damage(data: bytes, chance: random.Random) -> bytes:
    spoiled = bytearray(data)
    header_end = 8 + int.from_bytes(data[:8], "little")
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(header_end if chance.random() < 0.9 else len(spoiled))
        spoiled[place] = chance.choice(
            [spoiled[place] ^ 1 << chance.randrange(8), *b'0919[]{}",:-']
        )
    if chance.random() < 0.2:
        del spoiled[chance.randrange(len(spoiled)) :]
    return bytes(spoiled)


def test_damaged_files_never_crash(tmp_path: Path) -> None:
    """What still opens still reads; everything else is our own one-line error."""
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    path = tmp_path / SINGLE_NAME
    sound = save(
        {
            "layers.0.weight": torch.ones(4, 6).to(torch.float8_e4m3fn),
            "layers.0.weight_scale_inv": torch.ones(2, 3),
            "layers.0.bias": torch.ones(5).bfloat16(),
            "positions": torch.arange(3),
        },
        {"format": "pt"},
    )
    refused = opened = 0
    for seed in range(1500):
        data = damage(sound, random.Random(seed))
        path.write_bytes(data)
        try:
            tensors = open_checkpoint(tmp_path).tensors
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        opened += 1
        theirs = deserialize(data)  # type: ignore[no-untyped-call]
        assert len(theirs) >= len(tensors)  # what we take, the library takes
        for name in tensors:
            try:
                tensors[name].read()
            except CheckpointError as error:
                assert "dtype" in str(error) and "\n" not in str(error)
    assert refused > 500 and opened > 50


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2).half()}, path)
    data = path.read_bytes()
    open_safetensors(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            open_safetensors(path)
