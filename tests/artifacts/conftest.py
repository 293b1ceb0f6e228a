"""A small package that is complete, for tests to read, spoil and compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgewright.artifacts import (
    GenerationDefaults,
    Manifest,
    ModelInfo,
    Package,
    PackageWriter,
    Provenance,
    StateLayout,
    StateSpec,
    Tokenizer,
    Variant,
)

_WEIGHTS = (bytes(range(256)) * 16, b"\x01\x02" * 1000)


def _states(layers: int = 2) -> StateLayout:
    specs = [
        StateSpec(f"layers.{n}.{part}", ("batch", 2, "capacity", 8), "float32", "append")
        for n in range(layers)
        for part in ("key", "value")
    ]
    conv = StateSpec("layers.2.conv", ("batch", 16, 3), "float16", "replace", "delta")
    return StateLayout((*specs, conv))


def _manifest(weights: tuple[str, ...]) -> Manifest:
    return Manifest(
        model=ModelInfo(
            architecture="llama",
            parameters=3048,
            bits_per_weight=16.0,
            weight_dtypes=("bfloat16",),
            vocab_size=1003,
            layers=3,
            hidden_size=16,
            max_context=4096,
        ),
        generation=GenerationDefaults(
            eos_token_ids=(2, 7), bos_token_id=1, do_sample=True, temperature=0.6, top_p=0.9
        ),
        tokenizer=Tokenizer(
            definition="tokenizer/tokenizer.json",
            files=("tokenizer/tokenizer.json",),
            chat_templates={"default": "tokenizer/chat_template.jinja"},
            special_tokens={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "\u2581é"},
        ),
        variants=(
            Variant(
                name="cpu",
                provider="cpu",
                graphs={"step": "variants/cpu/model.onnx"},
                opset=23,
                ir_version=11,
                onnxruntime_min="1.31",
                libraries={"linux-x86_64": "lib/linux-x86_64/libedgewright.so"},
                weights=weights,
                states=_states(),
                bits_per_weight=16.0,
                weight_dtypes=("bfloat16",),
                compute_dtype="float32",
            ),
        ),
        provenance=Provenance(
            checkpoint="tiny-llama",
            checkpoint_sha256="ab" * 32,
            versions={"edgewright": "0.1.0", "torch": "2.13.0"},
            options={"bits": None, "providers": ("cpu",), "seed": 3, "strict": True},
        ),
    )


def _write_package(out: Path) -> Package:
    with PackageWriter(out) as writer:
        blobs = [writer.add_blob([data[:100], data[100:]]) for data in _WEIGHTS]
        writer.add_bytes("variants/cpu/model.onnx", b"graph bytes")
        writer.add_bytes("lib/linux-x86_64/libedgewright.so", b"\x7fELF library")
        writer.add_bytes("tokenizer/tokenizer.json", b"{}")
        writer.add_bytes("tokenizer/chat_template.jinja", b"{{ messages }}")
        return writer.finish(_manifest(tuple(blob.path for blob in blobs)))


@pytest.fixture
def manifest() -> Manifest:
    """As an exporter makes it: without the table of files, and so with no weights."""
    return _manifest(())


@pytest.fixture
def write_package() -> Callable[[Path], Package]:
    return _write_package


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return _write_package(tmp_path / "package")
