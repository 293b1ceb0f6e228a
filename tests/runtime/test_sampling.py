"""The sampler's filters against transformers' own, and what a seed promises."""

from __future__ import annotations

import numpy as np
import pytest

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.sampling import Sampler, Sampling, keep_top_p

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB = 103


def rows(kind: str) -> np.ndarray:
    random = np.random.default_rng(len(kind))
    logits = random.normal(0, 3, (24, VOCAB)).astype(np.float32)
    if kind == "ties":
        logits = np.round(logits)
    if kind == "flat":
        logits[:] = 1.0
    if kind == "peaked":
        logits[:, 5] += 60
    if kind == "holes":
        logits[:, ::3] = -np.inf
    return logits


@pytest.fixture(autouse=True)
def stable_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.sort leaves the order of ties open; asked for its stable order, ties compare too."""
    sort = torch.sort
    monkeypatch.setattr(torch, "sort", lambda scores, **how: sort(scores, stable=True, **how))


def reference(logits: np.ndarray, seen: np.ndarray, sampling: Sampling) -> np.ndarray:
    """transformers' own list of processors, made by its own function, in its own order."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    wanted = {
        name: getattr(sampling, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    config = transformers.GenerationConfig(do_sample=not sampling.greedy, **wanted)
    config.top_k = sampling.top_k
    processors = model._get_logits_processor(config, input_ids_seq_length=seen.shape[1])
    return processors(torch.from_numpy(seen), torch.from_numpy(logits.copy())).numpy()


SETTINGS = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.9),
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=VOCAB + 50),
    Sampling(top_p=0.0),
    Sampling(top_p=1e-6),
    Sampling(top_p=0.5),
    Sampling(top_p=0.9),
    Sampling(top_p=1.0),
    Sampling(min_p=0.0),
    Sampling(min_p=0.05),
    Sampling(min_p=1.0),
    Sampling(repetition_penalty=1.3),
    Sampling(repetition_penalty=0.7, temperature=0.9),
    Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.1),
    Sampling(temperature=0.01, top_k=5, top_p=0.3, min_p=0.9),
]


@pytest.mark.parametrize("kind", ["random", "ties", "flat", "peaked", "holes"])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_filters_equal_transformers(kind: str, sampling: Sampling) -> None:
    logits = rows(kind)
    seen = np.random.default_rng(3).integers(0, VOCAB, (len(logits), 12))
    expected = reference(logits, seen, sampling)
    for row, history, want in zip(logits, seen, expected, strict=True):
        mask = np.zeros(VOCAB, dtype=bool)
        mask[history] = True
        np.testing.assert_array_equal(sampling.filter(row, mask), want)


@pytest.mark.parametrize("keep", [1, 3, VOCAB, VOCAB + 9])
def test_top_p_keeps_at_least_what_was_asked(keep: int) -> None:
    logits = rows("random")
    warper = transformers.TopPLogitsWarper(0.01, min_tokens_to_keep=keep)
    expected = warper(None, torch.from_numpy(logits.copy())).numpy()
    got = np.stack([keep_top_p(row, 0.01, keep) for row in logits])
    np.testing.assert_array_equal(got, expected)


def test_the_input_is_not_changed() -> None:
    logits = rows("random")[0]
    before = logits.copy()
    Sampler(SETTINGS[-2], 1, VOCAB).choose(logits)
    np.testing.assert_array_equal(logits, before)


def test_a_seed_repeats_and_frequencies_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    first, second = (Sampler(Sampling(temperature=1.0), 11, 4) for _ in range(2))
    drawn = [first.choose(logits) for _ in range(20000)]
    assert drawn == [second.choose(logits) for _ in range(20000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    # Four standard deviations of the commonest share.
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.125, 0.125], atol=4 * (0.25 / 20000) ** 0.5)


def test_filtered_tokens_are_never_drawn() -> None:
    sampler = Sampler(Sampling(top_k=3), 5, VOCAB)
    for row in rows("random"):
        best = set(np.argsort(row)[-3:])
        assert all(sampler.choose(row) in best for _ in range(50))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(top_k=2)])
def test_nan_logits_are_an_error(sampling: Sampling) -> None:
    logits = rows("random")[0]
    logits[17] = np.nan
    with pytest.raises(SessionError, match="NaN"):
        Sampler(sampling, 0, VOCAB).choose(logits)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"top_p": "0.9"},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SessionError, match=next(iter(bad))):
        Sampling(**bad)
