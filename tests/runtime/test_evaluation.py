"""Windows, and figures over a session, where no package can be wrong in a way that hides it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import toy_packages
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError
from edgewright.runtime import Session
from edgewright.runtime.evaluation import PackageModel, TokenText, evaluate, tokenise
from edgewright.runtime.text import TextCodec


class FixedModel:
    """The same logits at every position, in pieces of three."""

    name = "fixed"

    def __init__(self, row: NDArray[np.float32]) -> None:
        self.row = row
        self.vocab_size = len(row)

    def logits(self, ids: list[int], start: int) -> Iterator[NDArray[np.float32]]:
        for at in range(start, len(ids), 3):
            yield np.repeat(self.row[None], min(3, len(ids) - at), axis=0)


def some_ids(count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(count).integers(0, toy_packages.VOCAB, count).tolist())


@pytest.mark.parametrize("prefix", [(), (7,), (7, 8)])
@pytest.mark.parametrize("window", [4, 5, 16, 33])
@pytest.mark.parametrize("count", [2, 15, 16, 17, 100])
def test_each_token_is_predicted_once(prefix: tuple[int, ...], window: int, count: int) -> None:
    text = TokenText(prefix, some_ids(count))
    windows = list(text.windows(window))
    predicted = [at for each in windows for at in range(each.first, each.end)]
    assert predicted == list(range(0 if prefix else 1, count))
    for number, each in enumerate(windows):
        assert len(prefix) + each.end - 1 - each.begin <= window
        assert each.first - each.begin == (max(1, window // 4) if number else 0 if prefix else 1)


def test_a_window_without_room_is_refused(toy: Path) -> None:
    with pytest.raises(SessionError, match="no room to predict"):
        evaluate(Session.open(toy), TokenText((1, 2, 3, 4), some_ids(9)), window=4)


def test_the_loss_is_that_of_the_tokens(any_toy: Path) -> None:
    """Each window by itself, by the session's logits of the whole of it."""
    session = Session.open(any_toy)
    text = TokenText((5,), some_ids(41))
    found = evaluate(session, text, window=16)
    losses = []
    for each in text.windows(16):
        logits = session.logits([5, *text.ids[each.begin : each.end]]).astype(np.float64)
        shares = np.log(np.exp(logits).sum(-1))
        losses += [
            shares[at - each.begin] - logits[at - each.begin, text.ids[at]]
            for at in range(each.first, each.end)
        ]
    assert found.tokens == len(losses) == 41
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


@pytest.mark.parametrize("start", [0, 1, 9, 20])
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_pieces_are_the_whole(any_toy: Path, start: int, chunk: int) -> None:
    session = Session.open(any_toy)
    ids = some_ids(21)
    session.prefill(ids[:3])
    pieces = list(session.logits_in_pieces(ids, start, chunk))
    assert max(map(len, pieces)) <= chunk
    whole = session.logits(ids)[start:]
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=0, atol=1e-4)
    assert session.lengths == [3], "the session's own state is left alone"


def test_against_known_distributions(toy: Path) -> None:
    """From a uniform distribution: KL and perplexity follow from the definition."""
    session = Session.open(toy)
    text = TokenText((), some_ids(30))
    vocab = session.vocab_size
    found = evaluate(session, text, against=FixedModel(np.zeros(vocab, np.float32))).against
    assert found is not None
    assert found.perplexity == pytest.approx(vocab)
    logits = session.logits(text.ids[:-1]).astype(np.float64)
    q = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    apart = (-math.log(vocab) - q).mean(-1)
    assert found.kl == pytest.approx(apart.mean(), rel=1e-6)
    assert found.kl_standard_error == pytest.approx(apart.std() / math.sqrt(29), rel=1e-5)


def test_a_token_that_is_ruled_out_costs_nothing(toy: Path) -> None:
    row = np.full(toy_packages.VOCAB, -np.inf, np.float32)
    row[:2] = 0
    text = TokenText((), (0, 1, 0, 1))
    found = evaluate(Session.open(toy), text, against=FixedModel(row)).against
    assert found is not None
    assert found.perplexity == pytest.approx(2)
    assert math.isfinite(found.kl)


def test_what_is_not_a_number_is_no_result(toy: Path) -> None:
    row = np.zeros(toy_packages.VOCAB, np.float32)
    row[3] = np.nan
    with pytest.raises(SessionError, match="the reference gave logits that are not numbers"):
        evaluate(Session.open(toy), TokenText((), some_ids(5)), against=FixedModel(row))


def test_other_vocabularies_cannot_be_compared(toy: Path) -> None:
    with pytest.raises(SessionError, match="package package predicts 300 tokens, fixed 7"):
        other = FixedModel(np.zeros(7, np.float32))
        evaluate(Session.open(toy), TokenText((), some_ids(5)), against=other)


def test_a_package_is_where_it_is(toy: Path) -> None:
    session = Session.open(toy)
    text = TokenText((), some_ids(40))
    found = evaluate(session, text, against=PackageModel(session), tokens=17, window=8)
    assert found.tokens == 17
    assert found.against is not None
    assert (found.against.kl, found.against.top1_agreement) == (0, 1)
    assert found.against.loss == found.loss


def test_what_the_tokenizer_puts_first_is_put_first(
    byte_tokenizer: tokenizers.Tokenizer,
) -> None:
    codec = TextCodec(byte_tokenizer.to_str().encode())
    text = tokenise(codec, "the end")
    assert text.prefix == (byte_tokenizer.token_to_id("<s>"),)
    assert list(text.ids) == codec.encode("the end", special=False)


def test_what_the_tokenizer_puts_last_is_not(byte_tokenizer: tokenizers.Tokenizer) -> None:
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", end)]
    )
    assert tokenise(TextCodec(tokenizer.to_str().encode()), "the").prefix == ()
