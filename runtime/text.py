"""A package's tokenizer.json goes in; text to ids, ids to text, and text as it streams come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import tokenizers
from tokenizers import AddedToken

from edgewright.artifacts.errors import PackageError, SessionError

# An unfinished UTF-8 character is at most three bytes, which decode to at most as many of these.
_REPLACEMENT = "\ufffd"
_UNFINISHED = 3
_PROMPT_TAIL = 8
_SILENT_LIMIT = 64
_PROBE = "a"

T = TypeVar("T")


class TextCodec:
    """Encodes and decodes as the checkpoint's own tokenizer does."""

    def __init__(self, definition: bytes, special_tokens: Iterable[str] = ()) -> None:
        self._tokenizer = _guard(lambda: tokenizers.Tokenizer.from_str(definition.decode()))
        # Padding is the runtime's business, and a prompt is never cut behind its writer's back.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # A token that the checkpoint calls special is one, even where the file has it as a word.
        self._tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in special_tokens]
        )

    def encode(self, text: str, special: bool = True) -> list[int]:
        """`special`: with the tokens that the tokenizer puts at the ends, as for a plain prompt."""
        if not isinstance(text, str):
            raise SessionError(f"a text prompt must be a string; found {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # bytes that were no UTF-8 reach Python as these
            raise SessionError(
                f"the text is not Unicode at character {error.start}; pass UTF-8"
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        return TextStream(self, prompt)


def leading_tokens(codec: TextCodec) -> tuple[int, ...]:
    """What the tokenizer puts before any text."""
    alone, framed = codec.encode(_PROBE, special=False), codec.encode(_PROBE)
    for at in range(len(framed) - len(alone) + 1):
        if alone and framed[at : at + len(alone)] == alone:
            return tuple(framed[:at])
    return ()


def _guard(make: Callable[[], T]) -> T:
    """The tokenizers library tells of a bad file by Exception itself, or by a panic."""
    try:
        return make()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise PackageError(f"tokenizer.json is no tokenizer that can be used: {reason}") from None


class TextStream:
    """Tokens in, one at a time; text out as soon as no later token can change it.

    A window of tokens is decoded again with each new one, because a tokenizer may join, strip or
    merge across tokens; it starts where the text was last whole, and never grows with the output.
    The tail of the prompt gives the first token its context (a leading space, say).
    """

    def __init__(self, codec: TextCodec, prompt: Sequence[int] = ()) -> None:
        self._codec = codec
        self._window = list(prompt[-_PROMPT_TAIL:])
        if codec.decode(self._window).endswith(_REPLACEMENT):
            self._window = []  # cut inside a character: no context is better than half of one
        self._told = len(self._window)  # tokens of the window whose text is out
        self._partial = ""  # text of later tokens that is out already

    def push(self, token: int) -> str:
        self._window.append(int(token))
        return self._emit(final=False)

    def finish(self) -> str:
        """What was held back; an unfinished character becomes the replacement character."""
        return self._emit(final=True)

    def _emit(self, final: bool) -> str:
        new = self._new_text()
        whole = new if final else _without_unfinished(new)
        fresh = whole[len(self._partial) :] if whole.startswith(self._partial) else ""
        if whole == new and new:
            # Whole to the last token: the window may start at what has just been told.
            del self._window[: self._told]
            self._told, self._partial = len(self._window), ""
        elif new:
            self._partial += fresh
        elif len(self._window) > self._told + _SILENT_LIMIT:
            del self._window[self._told :]  # special tokens: without text, and without end
        return fresh

    def _new_text(self) -> str:
        before = self._codec.decode(self._window[: self._told])
        both = self._codec.decode(self._window)
        if both.startswith(before):
            return both[len(before) :]
        # Byte fallback: a byte that makes its run invalid also unmakes characters told before.
        return self._codec.decode(self._window[self._told :])


def _without_unfinished(text: str) -> str:
    kept = text.rstrip(_REPLACEMENT)
    held = min(len(text) - len(kept), _UNFINISHED)
    return text[: len(text) - held]


class StopScanner:
    """Text in; text out up to the first stop string, which may begin in one piece and end in
    another."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        cuts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            told, self._held = self._held[: min(cuts)], ""
            return told
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def finish(self) -> str:
        told, self._held = self._held, ""
        return told


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text could begin the stop string."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
