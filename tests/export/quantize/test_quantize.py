"""A model, a plan and a budget go in; blobs that stand for nearly the same weights come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgewright.artifacts.errors import EdgewrightError, ExportError
from edgewright.custom_ops.packed_weights import unpack
from edgewright.export.quantize import quantize as module
from edgewright.export.quantize import tune
from edgewright.export.quantize.groups import values_of
from edgewright.export.quantize.made_up import made_up_text
from edgewright.export.quantize.options import QuantizeOptions
from edgewright.export.quantize.quantize import Quantized, quantize_model
from edgewright.export.quantize.stream import LayerStream
from edgewright.export.quantize.tuned import TunedMatrix


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, so that tiny models take seconds."""
    monkeypatch.setattr(tune, "_LAYER_STEPS", 2)
    monkeypatch.setattr(tune, "_MOST_STEPS", 3)
    monkeypatch.setattr(tune, "_SAVE_EVERY", 1)
    monkeypatch.setattr(module, "_SENSITIVITY_TOKENS", 256)


def quantized(
    opened: Callable, name: str, work: Path, bits: float = 6.0, **more: object
) -> Quantized:
    model, plan = opened(name)
    options = QuantizeOptions.check(bits, resume=work, **more)
    return quantize_model(model, plan, options, lambda *_: None, lambda _: None)


def blobs(found: Quantized) -> dict[str, bytes]:
    return {key: b"".join(group.pieces()) for key, group in found.groups.items()}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llama-biased-tied", "auto"),
        ("llama-biased-tied", "rtn"),
        ("deepseek-v3", "gptq"),
        ("zamba2", "auto"),
        ("gpt-oss", "awq"),
        ("latent-hybrid", "auto"),
    ],
)
def test_blobs_stand_for_the_weights(
    name: str, method: str, opened: Callable, text: Path, tmp_path: Path
) -> None:
    model, plan = opened(name)
    kept = sum(
        tensor.nbytes
        for name, tensor in model.parameters.items()
        if name not in {member for group in plan for member in group.names}
    )
    bits = 6.5 + 8 * kept / model.parameter_count
    given = None if method == "rtn" else text
    found = quantized(opened, name, tmp_path / "work", bits, method=method, text=given)
    assert bits - 0.5 < found.bits <= bits
    stored = kept
    for group in plan:
        data = b"".join(found.groups[group.key].pieces())
        assert len(data) == found.groups[group.key].size
        stored += len(data)
        values = values_of(group, unpack(np.frombuffer(data, np.uint8)))
        for member in group.names:
            exact = model.weights[member].read().float()
            error = (values[member] - exact).square().mean() / exact.square().mean()
            assert values[member].shape == exact.shape
            assert float(error) < 0.1, member
    assert found.bits == pytest.approx(8 * stored / model.parameter_count)
    found.discard()
    assert not (tmp_path / "work").exists()


def test_the_same_seed_gives_the_same_bytes(opened: Callable, text: Path, tmp_path: Path) -> None:
    twice = [
        blobs(quantized(opened, "llama-biased-tied", tmp_path / f"{i}", text=text)) for i in (0, 1)
    ]
    assert twice[0] == twice[1]


def test_without_text_a_model_makes_up_its_own(opened: Callable, tmp_path: Path) -> None:
    model, _ = opened("llama-biased-tied")
    first, again = (made_up_text(model, 512, 3, lambda *_: None) for _ in range(2))
    other = made_up_text(model, 512, 4, lambda *_: None)
    assert first is not None and again is not None and other is not None
    assert first.sha256 == again.sha256 != other.sha256
    assert first.sample.numel() == 512
    # What it expects of itself is likelier than what anybody would put there.
    stream = LayerStream(model)
    stream.hold()

    def loss(ids: Tensor) -> float:
        x = stream.embed(ids)
        for index in range(len(stream)):
            x = stream.run_layer(index, x, None)
        found = cross_entropy(stream.logits(x)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return float(found)

    anything = torch.randint(model.config.vocab_size, first.sample.shape)
    assert loss(first.sample) < 0.9 * loss(anything)
    found = quantized(opened, "llama-biased-tied", tmp_path, tokens=512)
    assert found.tokens == 512 and found.method.endswith("on text it made up")


def test_tuning_begins_with_what_was_quantised(
    opened: Callable, text: Path, tmp_path: Path
) -> None:
    model, plan = opened("llama-biased-tied")
    found = quantized(opened, "llama-biased-tied", tmp_path, 6.0, text=text, method="gptq")
    for group in plan:
        (matrix,) = unpack(np.frombuffer(b"".join(found.groups[group.key].pieces()), np.uint8))
        weight = torch.cat([model.weights[name].read().float() for name in group.names])
        tuned = TunedMatrix(matrix, weight)
        assert np.array_equal(tuned.frozen().dequantised(), matrix.dequantised())
        assert np.allclose(tuned.value().numpy(), matrix.dequantised(), atol=1e-6)


@pytest.mark.parametrize("given", ["nothing", "text", "rounding"])
def test_weights_that_are_not_finite_are_refused(
    given: str, opened: Callable, text: Path, tmp_path: Path
) -> None:
    from edgewright.model.lazy import constant

    model, plan = opened("llama")
    name = plan[-1].names[-1]
    kept = model.weights[name]
    model.weights[name] = constant(torch.full(kept.shape, float("nan")), name)
    try:
        with pytest.raises(ExportError, match=r"not finite"):
            quantized(
                opened,
                "llama",
                tmp_path,
                method="rtn" if given == "rounding" else "auto",
                text=text if given == "text" else None,
            )
    finally:
        model.weights[name] = kept


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no text"),
        (b"\xff\xfe\x00\x01" * 100, "not UTF-8"),
        (b"text\0" * 1000, "NUL"),
        (b"def f(): pass\n", "tokens to calibrate with"),
    ],
)
def test_bad_text_is_refused(data: bytes, problem: str, opened: Callable, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(EdgewrightError, match=problem):
        quantized(opened, "llama-biased-tied", tmp_path / "work", text=path)


def test_a_budget_that_cannot_be_met_names_one_that_can(opened: Callable, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"bits=2.1 cannot be met.*this model has \d"):
        quantized(opened, "llama-biased-tied", tmp_path / "work", 2.1)
