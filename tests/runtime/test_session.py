"""States: every way to feed the same tokens gives the same logits, and no row disturbs another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toy_packages import VOCAB, toy_reference, toy_weights, write_toy

from edgewright.artifacts.errors import ContextLengthError, SessionError
from edgewright.runtime import Budget, Session

CLOSE = {"rtol": 0, "atol": 2e-4}  # of logits whose deviation is 16


def prompt(length: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


@pytest.mark.parametrize("length", [1, 17, 300])
@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
def test_logits_are_those_of_the_whole_prompt(toy: Path, length: int, chunk: int | None) -> None:
    ids = prompt(length)
    logits = Session.open(toy).logits(ids, chunk)
    assert logits.shape == (length, VOCAB) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, toy_reference(ids, toy_weights()), **CLOSE)


def test_logits_leave_the_state_alone(toy: Path) -> None:
    session = Session.open(toy)
    session.prefill(prompt(9))
    before = session.snapshot()
    session.logits(prompt(40, seed=2))
    assert session.tokens == [prompt(9)]
    for old, new in zip(before.arrays, session.snapshot().arrays, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("pieces", [[30], [1] * 30, [7, 7, 7, 7, 2], [29, 1], [1, 29]])
@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_prefill_composes(any_toy: Path, pieces: list[int], chunk: int) -> None:
    ids, session = prompt(30), Session.open(any_toy)
    expected = session.logits(ids)
    at = 0
    for size in pieces:
        last = session.prefill(ids[at : at + size], chunk=chunk)
        at += size
        np.testing.assert_allclose(last, expected[None, at - 1], **CLOSE)


def test_decode_follows_prefill_past_the_first_capacity(any_toy: Path) -> None:
    ids, session = prompt(200), Session.open(any_toy)
    expected = session.logits(ids)
    session.prefill(ids[:5])
    for position in range(5, 200):
        np.testing.assert_allclose(session.decode(ids[position])[0], expected[position], **CLOSE)
    assert session.lengths == [200]


@pytest.mark.parametrize("chunk", [3, 512])
def test_rows_of_a_batch_equal_single_runs(any_toy: Path, chunk: int) -> None:
    session = Session.open(any_toy)
    rows = [prompt(length, seed=length) for length in (1, 17, 4, 90)]
    together = session.prefill(rows, chunk=chunk)
    nexts = [[5, 6, 7, 8], [50, 60, 70, 80]]
    stepped = [session.decode(tokens) for tokens in nexts]
    for index, row in enumerate(rows):
        alone = Session.open(any_toy)
        np.testing.assert_allclose(together[index], alone.prefill(row)[0], **CLOSE)
        for tokens, logits in zip(nexts, stepped, strict=True):
            np.testing.assert_allclose(logits[index], alone.decode(tokens[index])[0], **CLOSE)


def test_a_row_without_tokens_stays_as_it_is(toy: Path) -> None:
    session, other = Session.open(toy), Session.open(toy)
    rows = [prompt(6, seed=3), prompt(2, seed=4)]
    session.prefill(rows)
    other.prefill(rows)
    logits = session.prefill([[], prompt(70, seed=5)])
    assert np.isnan(logits[0]).all() and np.isfinite(logits[1]).all()
    assert session.lengths == [6, 72]
    np.testing.assert_allclose(session.decode([9, 9])[0], other.decode([9, 9])[0], **CLOSE)


def test_lengths_cut_the_padding_of_a_rectangle(toy: Path) -> None:
    session, other = Session.open(toy), Session.open(toy)
    rows = [prompt(4, seed=3), prompt(9, seed=4)]
    padded = np.zeros((2, 9), dtype=np.int32)
    padded[0, :4], padded[1] = rows
    np.testing.assert_array_equal(session.prefill(padded, [4, 9]), other.prefill(rows))
    assert session.tokens == rows


def test_snapshot_resume_and_fork_are_independent(any_toy: Path) -> None:
    session = Session.open(any_toy)
    session.prefill(prompt(70))
    state = session.snapshot()
    fork = session.fork()
    first = [session.decode(token) for token in (1, 2, 3)]
    for other in (fork, Session.open(any_toy)):
        other.resume(state)
        assert other.tokens == [prompt(70)]
        for token, logits in zip((1, 2, 3), first, strict=True):
            np.testing.assert_array_equal(other.decode(token), logits)
    session.resume(state)
    np.testing.assert_array_equal(session.decode(1), first[0])


def test_a_fork_goes_its_own_way_at_once(toy: Path) -> None:
    session = Session.open(toy)
    session.prefill(prompt(10))
    fork = session.fork()
    expected = session.fork().decode(7)
    fork.prefill(prompt(100, seed=8))
    np.testing.assert_array_equal(session.decode(7), expected)


def test_forks_run_in_threads_of_their_own(toy: Path) -> None:
    session = Session.open(toy)
    session.prefill(prompt(10))
    forks = [session.fork() for _ in range(4)]
    expected = session.generate([1], 60, fresh=False)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda fork: fork.generate([1], 60, fresh=False), forks))
    assert made == [expected] * 4


def test_a_snapshot_holds_only_what_is_in_use(toy: Path) -> None:
    session = Session.open(toy)
    session.prefill(prompt(3))
    state = session.snapshot()
    assert state.arrays[0].shape == (1, 2, 3, 4)
    assert not state.arrays[0].flags.writeable
    assert state.nbytes < session.state_bytes


def test_reset_forgets_everything(toy: Path) -> None:
    session = Session.open(toy)
    expected = session.prefill(prompt(20, seed=2))
    session.prefill(prompt(200))
    session.reset()
    assert session.lengths == [0]
    np.testing.assert_array_equal(session.prefill(prompt(20, seed=2)), expected)
    session.reset()
    session.prefill([prompt(3), prompt(4)])  # and a new batch may be of another size
    assert session.lengths == [3, 4]


def test_states_of_others_are_refused(toy: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "weights", seed=1)
    write_toy(tmp_path / "layout", kinds=("append",))
    session = Session.open(toy)
    session.prefill(prompt(3))
    state = session.snapshot()
    for other in ("weights", "layout"):
        with pytest.raises(SessionError, match="another package"):
            Session.open(tmp_path / other).resume(state)
    with pytest.raises(SessionError, match="larger capacity"):
        Session.open(toy, capacity=2).resume(state)


def test_the_context_is_a_bound(toy: Path) -> None:
    session = Session.open(toy, capacity=10)
    assert session.context_limit == 10
    assert Session.open(toy, capacity=10**9).context_limit == 10**9
    session.prefill(prompt(4))
    before = session.tokens
    for refused in (
        lambda: session.prefill(prompt(7)),
        lambda: session.logits(prompt(11)),
        lambda: session.generate(prompt(11)),
    ):
        with pytest.raises(ContextLengthError, match=r"11 tokens.*holds 10"):
            refused()
        assert session.tokens == before
    session.prefill(prompt(6))
    with pytest.raises(ContextLengthError):
        session.decode(1)


def test_growth_stops_at_the_context(toy: Path) -> None:
    session = Session.open(toy, capacity=100)
    session.prefill(prompt(64))
    for _ in range(36):
        session.decode(1)
    assert session.state_bytes == 100 * 2 * 4 * 4 + 6 * 4


def test_a_budget_refuses_before_the_memory_is_taken(toy: Path) -> None:
    session = Session.open(toy, budget=Budget(memory_bytes=6 * 4 + 70 * 2 * 4 * 4))
    session.prefill(prompt(60))
    session.prefill(prompt(10))  # to the last byte
    with pytest.raises(SessionError, match="budget"):
        session.prefill(prompt(60))
    with pytest.raises(SessionError, match="2 rows"):
        Session.open(toy, budget=Budget(memory_bytes=100)).prefill([[1], [2]])


def test_states_stay_in_the_memory_they_are_bound_to(any_toy: Path) -> None:
    """ONNX Runtime writes where it reads: the outputs are our own arrays, at our addresses."""
    session = Session.open(any_toy)
    session.prefill(prompt(5))
    session.decode(1)
    context = session._context
    assert context is not None and context._plan is not None
    outputs = context._plan.binding.get_outputs()
    mine = [context._plan.logits, *context._buffers.arrays]
    assert [value.data_ptr() for value in outputs] == [array.ctypes.data for array in mine]
    assert all(array.ctypes.data % 64 == 0 for array in context._buffers.arrays)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, VOCAB], f"token {VOCAB} at position 1"),
        ([-1], "token -1"),
        ([1.5], "whole numbers"),
        ([True, False], "whole numbers"),
        (["a"], "no tokenizer"),
        ([[1], [[2]]], "whole numbers"),
        (np.zeros((1, 2, 2), dtype=np.int64), "whole numbers"),
        ([2**70], "whole numbers"),
        (np.zeros((0, 3), dtype=np.int64), "no rows"),
        (np.array(1), "whole numbers"),
        (None, "found NoneType"),
        ({"input_ids": [1]}, "found dict"),
        ("text", "no tokenizer"),
    ],
)
def test_bad_tokens_are_one_line(toy: Path, ids: object, message: str) -> None:
    with pytest.raises(SessionError, match=message) as caught:
        Session.open(toy).prefill(ids)
    assert "\n" not in str(caught.value)


def test_misuse_is_one_line(toy: Path) -> None:
    session = Session.open(toy)
    with pytest.raises(SessionError, match="no state yet"):
        session.snapshot()
    session.prefill([[1], [2]])
    with pytest.raises(SessionError, match="3 rows for a state of 2"):
        session.decode([1, 2, 3])
    with pytest.raises(SessionError, match="lengths"):
        session.prefill([[1, 2], [2, 3]], [1])
    with pytest.raises(SessionError, match="length of 5"):
        session.prefill([[1, 2], [2, 3]], [1, 5])
    with pytest.raises(SessionError, match="chunk"):
        session.prefill([[1], [2]], chunk=0)
    with pytest.raises(SessionError, match="capacity"):
        Session.open(toy, capacity=0)
    for threads in (0, "2", True):
        with pytest.raises(SessionError, match="threads"):
            Session.open(toy, threads=threads)
    with pytest.raises(SessionError, match="Budget"):
        Session.open(toy, budget=1 << 30)
    with pytest.raises(SessionError, match="snapshot"):
        session.resume(None)


def test_a_stateless_context_and_empty_logits(tmp_path: Path) -> None:
    write_toy(tmp_path / "none", kinds=())
    session = Session.open(tmp_path / "none")
    assert session.logits([]).shape == (0, VOCAB)
    session.prefill(prompt(100))
    assert session.state_bytes == 0 and session.snapshot().arrays == ()
