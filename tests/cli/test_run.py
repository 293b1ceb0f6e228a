"""`edgewright run`: its text is the session's, however the prompt comes in."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgewright.runtime import Session

Edgewright = Callable[..., Result]
PROMPT = "def read(path):"


def streamed(package: Path, prompt: str, tokens: int = 12) -> str:
    return "".join(Session.open(package).stream(prompt, tokens))


def test_text_goes_to_stdout_and_nothing_else_does(edgewright: Edgewright, package: Path) -> None:
    ended = edgewright("run", package, "--prompt", PROMPT, "-n", "12")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout == streamed(package, PROMPT) + "\n"


def test_a_prompt_from_stdin(edgewright: Edgewright, package: Path) -> None:
    ended = edgewright("run", package, "-n", "12", stdin=PROMPT)
    assert ended.stdout == streamed(package, PROMPT) + "\n"


def test_json_holds_tokens_and_text(edgewright: Edgewright, package: Path) -> None:
    session = Session.open(package)
    answer = json.loads(edgewright("run", package, "-p", PROMPT, "-n", "9", "--json").stdout)
    assert answer["prompt_tokens"] == session.encode(PROMPT)
    assert answer["tokens"] == session.generate(PROMPT, 9)
    assert answer["text"] == session.decode_text(answer["tokens"])
    assert answer["ended_by"] == "length"


def test_a_stop_string_ends_it(edgewright: Edgewright, package: Path) -> None:
    text = streamed(package, PROMPT, 20)
    stop = text[3:5]
    ended = edgewright("run", package, "-p", PROMPT, "-n", "20", "--stop", stop)
    assert ended.stdout == text[: text.find(stop)] + "\n"
    answer = json.loads(
        edgewright("run", package, "-p", PROMPT, "-n", "20", "--stop", stop, "--json").stdout
    )
    assert answer["text"] == text[: text.find(stop)]
    assert answer["ended_by"] == "stop"


def test_token_ids_in_token_ids_out(edgewright: Edgewright, package: Path) -> None:
    ended = edgewright("run", package, "--tokens", "5, 17,200", "-n", "6")
    expected = Session.open(package).generate([5, 17, 200], 6)
    assert ended.stdout == ",".join(map(str, expected)) + "\n"


def test_a_seed_repeats_and_another_differs(edgewright: Edgewright, package: Path) -> None:
    def sample(seed: int) -> str:
        line = ("run", package, "-p", PROMPT, "-n", "24", "--temperature", "1.5", "--seed", seed)
        return edgewright(*map(str, line)).stdout

    assert sample(1) == sample(1) != sample(2)


def test_chat_lays_the_prompt_out(edgewright: Edgewright, package: Path) -> None:
    session = Session.open(package)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    ended = edgewright(
        "run", package, "--chat", "--system", "Be brief.", "-p", "Hi", "-n", "8", "--json"
    )
    assert json.loads(ended.stdout)["prompt_tokens"] == session.encode_chat(messages)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_conversation_on_a_terminal(package: Path) -> None:
    import pty
    import subprocess

    keyboard, terminal = pty.openpty()
    line = [sys.executable, "-m", "edgewright.cli", "run", str(package), "--chat", "-n", "6"]
    with subprocess.Popen(line, stdin=terminal, stdout=subprocess.PIPE) as process:
        os.write(keyboard, b"Hi\nMore\n\x04")
        output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0
    session = Session.open(package)
    messages: list[dict[str, object]] = []
    for question in ("Hi", "More"):
        messages.append({"role": "user", "content": question})
        answer = "".join(session.stream(session.encode_chat(messages), 6))
        messages.append({"role": "assistant", "content": answer})
        assert answer in output


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--tokens", "1,x"], 2, "not a list of whole numbers"),
        (["--tokens", "1", "--prompt", "x"], 2, "--tokens goes with"),
        (["--system", "x", "--prompt", "x"], 2, "--system needs --chat"),
        (["--raw", "--chat", "--prompt", "x"], 2, "exclude each other"),
        (["--tokens", "300"], 1, "outside the vocabulary"),
        (["--prompt", ""], 1, "no tokens"),
        (["--prompt", "x" * 97], 1, "96"),
        (["--prompt", "x" * 11, "--capacity", "10"], 1, "10"),
        (["--prompt", "x", "--temperature", "-1"], 1, "temperature"),
        (["--prompt", "x", "--threads", "0"], 1, "threads"),
        (["--prompt", "x", "--provider", "toaster"], 1, "toaster"),
    ],
)
def test_a_mistake_is_one_line(
    edgewright: Edgewright, package: Path, arguments: list[str], status: int, words: str
) -> None:
    ended = edgewright("run", package, *arguments)
    assert (ended.exit_code, ended.stdout) == (status, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr
