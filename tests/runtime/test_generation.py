"""Generation: greedy and sampled tokens, where rows end, and text as it streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from toy_packages import chain_graph, toy_reference, toy_weights, write_package

from edgewright.artifacts import StateLayout
from edgewright.artifacts.errors import SessionError
from edgewright.runtime import Session

Speaker = Callable[[str], Session]


def greedy_reference(ids: list[int], count: int) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(toy_reference(ids, toy_weights())[-1].argmax()))
    return ids[-count:]


@pytest.fixture(scope="module")
def speaker(
    byte_tokenizer: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Speaker:
    """A session that answers "?" with the given text, whose tokens must differ, and then ends."""

    def make(text: str) -> Session:
        ids = byte_tokenizer.encode(f"?{text}", add_special_tokens=False).ids
        end = byte_tokenizer.token_to_id("</s>")
        assert len(set(ids)) == len(ids)
        successor = [end] * byte_tokenizer.get_vocab_size()
        for token, following in zip(ids, [*ids[1:], end], strict=True):
            successor[token] = following
        graph, weights = chain_graph(successor)
        out = tmp_path_factory.mktemp("speaker") / "package"
        write_package(
            out,
            graph,
            weights,
            states=StateLayout(()),
            vocab=len(successor),
            tokenizer={"tokenizer.json": byte_tokenizer.to_str().encode()},
            special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
            eos=(end,),
        )
        return Session.open(out)

    return make


def test_greedy_tokens_are_the_models(toy: Path) -> None:
    ids = [5, 17, 200]
    assert Session.open(toy).generate(ids, max_new_tokens=40) == greedy_reference(ids, 40)


def test_a_batch_of_prompts_equals_single_runs(toy: Path) -> None:
    prompts = [[5], [17, 3, 200, 9], list(range(90))]
    session = Session.open(toy)
    together = session.generate(prompts, max_new_tokens=20)
    assert together == [session.generate(one, max_new_tokens=20) for one in prompts]


def test_the_state_holds_all_but_the_last_token(toy: Path) -> None:
    session = Session.open(toy)
    first = session.generate([1, 2, 3], max_new_tokens=5)
    assert session.tokens == [[1, 2, 3, *first[:-1]]]
    on = session.generate([first[-1]], max_new_tokens=5, fresh=False)
    assert first + on == Session.open(toy).generate([1, 2, 3], max_new_tokens=10)


def test_rows_that_end_early_leave_the_others_alone(toy: Path) -> None:
    session = Session.open(toy)
    prompts = [[5], [17, 3, 200, 9], [40, 41]]
    whole = session.generate(prompts, max_new_tokens=30)
    stop = next(token for token in whole[0] if token not in whole[1] + whole[2])
    cut = session.generate(prompts, max_new_tokens=30, stop_ids=[stop])
    assert cut[0] == whole[0][: whole[0].index(stop) + 1]
    assert cut[1:] == whole[1:]


def test_the_context_bounds_what_is_generated(toy: Path) -> None:
    session = Session.open(toy, capacity=20)
    rows = session.generate([[1] * 15, [1] * 3, [1] * 20], max_new_tokens=12)
    assert [len(row) for row in rows] == [6, 12, 1]
    assert session.generate([1, 2], max_new_tokens=0) == []


SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2}


def test_a_seed_repeats_and_does_not_see_the_batch(toy: Path) -> None:
    session = Session.open(toy)
    prompts = [[5], [17, 3, 200, 9], [40, 41]]
    seeds = [3, 4, 3]
    together = session.generate(prompts, max_new_tokens=25, seed=seeds, **SAMPLED)
    for ids, seed, row in zip(prompts, seeds, together, strict=True):
        assert session.generate(ids, max_new_tokens=25, seed=seed, **SAMPLED) == row
    same = session.generate(prompts, max_new_tokens=25, seed=3, **SAMPLED)
    assert same[0] == together[0] and same[2] == together[2]
    assert session.generate([5], max_new_tokens=25, seed=9, **SAMPLED) != together[0]


def test_without_a_seed_two_runs_differ(toy: Path) -> None:
    session = Session.open(toy)
    assert session.generate([5], temperature=30.0) != session.generate([5], temperature=30.0)


def test_temperature_zero_is_greedy(toy: Path) -> None:
    session = Session.open(toy)
    assert session.generate([5], temperature=0, top_p=0.5) == session.generate([5])


def test_the_penalty_counts_the_prompt(toy: Path) -> None:
    session = Session.open(toy)
    first = int(session.logits([5])[-1].argmax())
    order = np.argsort(session.logits([first, 5])[-1])
    penalised = session.generate([int(order[-1]), 5], max_new_tokens=1, repetition_penalty=1e6)
    assert penalised != [int(order[-1])]


def test_text_ends_with_the_checkpoints_own_token(speaker: Speaker) -> None:
    session = speaker("Hi, né€!")
    tokens = session.generate("?")
    assert session.decode_text(tokens) == "Hi, né€!"
    assert tokens[-1] == session.package.manifest.generation.eos_token_ids[0]
    assert len(session.generate("?", stop_ids=(), max_new_tokens=40)) == 40
    assert session.generate(["?", "?"]) == [tokens, tokens]


def test_pieces_of_a_stream_are_whole_characters(speaker: Speaker) -> None:
    session = speaker("Hi, né€🚀!")
    pieces = list(session.stream("?"))
    assert "".join(pieces) == "Hi, né€🚀!"
    assert {"é", "€", "🚀"} <= set(pieces)


def test_a_stream_cut_inside_a_character_says_so(speaker: Speaker) -> None:
    assert list(speaker("a🙂").stream("?", max_new_tokens=3)) == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "told", "tokens"),
    [
        ("CD", "AB", 4),
        (["DE", "BC"], "A", 3),
        ("A", "", 1),
        ("XYZ", "ABCDEF", 7),
        (["F"], "ABCDE", 6),
        (["EF!"], "ABCDEF", 7),
    ],
)
def test_stop_strings(speaker: Speaker, stop: str | list[str], told: str, tokens: int) -> None:
    session = speaker("ABCDEF")
    assert "".join(session.stream("?", stop=stop)) == told
    assert len(session.generate("?", stop=stop)) == tokens


def test_a_stop_string_ends_its_row_alone(speaker: Speaker) -> None:
    session = speaker("ABCDEF")
    rows = session.generate(["?", "?AB"], stop="BC", max_new_tokens=20)
    assert [session.decode_text(row) for row in rows] == ["ABC", "CDEF"]


def test_a_stream_may_be_left_early(speaker: Speaker) -> None:
    session = speaker("ABCDEF")
    for piece in session.stream("?"):
        assert piece == "A"
        break
    assert "".join(session.stream("?")) == "ABCDEF"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": "x"}, "no tokenizer"),
        ({"stop": 3}, "stop"),
        ({"stop_ids": ["x"]}, "stop_ids"),
        ({"stop_ids": 1.5}, "stop_ids"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2]}, "2 seeds for 1 rows"),
        ({"temperature": -2}, "temperature"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    toy: Path, options: dict[str, object], message: str
) -> None:
    session = Session.open(toy)
    session.prefill([1, 2])
    with pytest.raises(SessionError, match=message):
        session.generate([3], **options)
    assert session.tokens == [[1, 2]]


def test_prompts_that_say_nothing_are_refused(toy: Path) -> None:
    session = Session.open(toy)
    for empty in ([], [[1], []]):
        with pytest.raises(SessionError, match="no tokens"):
            session.generate(empty)
    with pytest.raises(SessionError, match="no tokenizer"):
        session.generate("text")
    with pytest.raises(SessionError, match="single prompt"):
        session.stream([[1], [2]])
    with pytest.raises(TypeError, match="tempreature"):
        session.generate([1], tempreature=1.0)
    assert session.tokens == []
