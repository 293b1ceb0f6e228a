"""A package and a prompt go in; the model's text comes out on stdout as it is made."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from edgewright.cli._options import session_options, whole_numbers

if TYPE_CHECKING:
    from edgewright.runtime.session import GenerateOptions, Session

# Text from a model may hold a terminal's control codes: on a terminal they are shown, not obeyed.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t\r"} | {0x7F: 0x2421}


@dataclass(frozen=True)
class Request:
    """What to say to the model, and in which form to give its answer."""

    prompt: str | None
    tokens: Sequence[int] | None
    chat: bool
    system: str | None
    raw: bool
    max_new_tokens: int
    as_json: bool

    def check(self) -> None:
        if self.tokens is not None and (self.prompt is not None or self.chat or self.raw):
            raise click.UsageError("--tokens goes with neither --prompt, --chat nor --raw.")
        if self.raw and self.chat:
            raise click.UsageError("--raw and --chat exclude each other.")
        if self.system is not None and not self.chat:
            raise click.UsageError("--system needs --chat.")


@click.command(short_help="Complete a prompt, or hold a conversation.")
@click.argument("package")
@click.option("--prompt", "-p", metavar="TEXT", help="The text to continue; else stdin is read.")
@click.option("--chat", is_flag=True, help="Lay the prompt out by the checkpoint's chat template.")
@click.option("--system", metavar="TEXT", help="The system message of the chat.")
@click.option("--raw", is_flag=True, help="Add none of the tokenizer's own start and end tokens.")
@click.option("--tokens", metavar="1,2,3", callback=whole_numbers, help="Token ids as the prompt.")
@click.option(
    "--max-new-tokens",
    "-n",
    metavar="N",
    default=64,
    show_default=True,
    type=int,
    help="Make no more tokens than these.",
)
@click.option(
    "--temperature", metavar="T", type=float, help="Sample; 0 is greedy, as is saying nothing."
)
@click.option("--top-k", metavar="K", type=int, help="Sample from the K likeliest tokens.")
@click.option("--top-p", metavar="P", type=float, help="Sample from the likeliest that sum to P.")
@click.option(
    "--min-p", metavar="P", type=float, help="Drop what is less than P times the likeliest."
)
@click.option("--repetition-penalty", metavar="X", type=float, help="Above 1: repeat less.")
@click.option("--seed", metavar="N", type=int, help="The same seed gives the same text.")
@click.option(
    "--stop", metavar="TEXT", multiple=True, help="End before this text; may be repeated."
)
@session_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when it is done.")
def command(
    package: str,
    provider: str | None,
    capacity: int | None,
    threads: int | None,
    stop: tuple[str, ...],
    **values: Any,
) -> None:
    """Complete a prompt with PACKAGE, as the checkpoint's own PyTorch code would.

    The text goes to stdout as it is made, what it cost to stderr. It is greedy unless a sampling
    option is given. With --chat and no --prompt on a terminal it is a conversation, one line a
    turn, until Ctrl-D.

    \b
      edgewright run package --prompt "def read(path):"
      edgewright run package --chat -p "Why is the sky blue?" --temperature 0.7
      git diff | edgewright run package --chat --system "Summarise this change."
    """
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    sampling: GenerateOptions = {name: values.pop(name) for name in names}  # type: ignore[assignment]
    sampling["stop"] = stop or None
    request = Request(**values)
    request.check()
    from edgewright.runtime.session import Session

    session = Session.open(package, provider, capacity=capacity, threads=threads)
    if request.chat and request.prompt is None and sys.stdin.isatty() and not request.as_json:
        _converse(session, request, sampling)
        return
    ids = _prompt_ids(session, request)
    if request.as_json:
        _answer_as_json(session, request, ids, sampling)
    elif request.tokens is not None:
        made = _timed_generate(session, request, ids, sampling)[0]
        click.echo(",".join(map(str, made)))
    else:
        _stream(session, request, ids, sampling)


def _prompt_ids(session: Session, request: Request) -> list[int]:
    if request.tokens is not None:
        return list(request.tokens)
    text = request.prompt
    if text is None:
        if sys.stdin.isatty():
            raise click.UsageError("No prompt: give --prompt TEXT, or text on stdin.")
        text = sys.stdin.read()
    if request.chat:
        return session.encode_chat([*_opening(request), {"role": "user", "content": text}])
    return session.encode(text, special=not request.raw)


def _opening(request: Request) -> list[dict[str, object]]:
    return [{"role": "system", "content": request.system}] if request.system is not None else []


def _stream(
    session: Session, request: Request, ids: Sequence[int], options: GenerateOptions
) -> str:
    """Print the text as it comes; the whole of it is returned."""
    visible = sys.stdout.isatty()
    began = time.perf_counter()
    reused = len(session.tokens[0]) if not options.get("fresh", True) else 0
    pieces: Iterator[str] = session.stream(ids, request.max_new_tokens, **options)
    prefilled = time.perf_counter()
    text = ""
    for piece in pieces:
        click.echo(piece.translate(_VISIBLE) if visible else piece, nl=False)
        text += piece
    ended = time.perf_counter()
    click.echo()
    # The state holds all but the last token.
    made = len(session.tokens[0]) - reused - len(ids) + 1
    _report(len(ids), prefilled - began, made, ended - prefilled)
    return text


def _timed_generate(
    session: Session, request: Request, ids: Sequence[int], options: GenerateOptions
) -> tuple[list[int], float]:
    began = time.perf_counter()
    made = session.generate([ids], request.max_new_tokens, **options)[0]
    assert isinstance(made, list)
    return made, time.perf_counter() - began


def _answer_as_json(
    session: Session, request: Request, ids: Sequence[int], options: GenerateOptions
) -> None:
    made, seconds = _timed_generate(session, request, ids, options)
    answer: dict[str, object] = {"prompt_tokens": list(ids), "tokens": made}
    if session.package.manifest.tokenizer is not None:
        text = session.decode_text(made)
        cuts = [text.find(stop) for stop in options.get("stop") or () if stop in text]
        answer["text"] = text[: min(cuts)] if cuts else text
    ended_early = len(made) < request.max_new_tokens
    room = session.context_limit - len(ids)
    answer["ended_by"] = "stop" if ended_early and len(made) < room + 1 else "length"
    answer["seconds"] = seconds
    click.echo(json.dumps(answer, ensure_ascii=False))


def _converse(session: Session, request: Request, options: GenerateOptions) -> None:
    messages = _opening(request)
    while True:
        try:
            line = input("> ")
        except EOFError:
            click.echo()
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        ids = session.encode_chat(messages)
        # What the state holds already is not computed again, where the template only appended.
        held = session.tokens[0] if session.tokens else []
        fresh = not held or len(held) >= len(ids) or ids[: len(held)] != held
        new = ids if fresh else ids[len(held) :]
        answer = _stream(session, request, new, {**options, "fresh": fresh})
        messages.append({"role": "assistant", "content": answer})


def _report(read: int, read_seconds: float, made: int, made_seconds: float) -> None:
    if not sys.stderr.isatty() and not sys.stdout.isatty():
        return
    speed = f", {(made - 1) / made_seconds:.0f} a second" if made > 1 and made_seconds > 0 else ""
    click.echo(
        f"[{read} tokens read in {read_seconds:.2f} s, {made} made in {made_seconds:.2f} s{speed}]",
        err=True,
    )
