"""A session and a text's tokens go in; perplexity, and the divergence from another model, come out.

Nothing is kept but sums: the logits of a long text are never in memory together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.context import Logits
from edgewright.runtime.session import Session
from edgewright.runtime.text import TextCodec, leading_tokens

LONGEST_WINDOW = 2048
LONGEST_TEXT_BYTES = 64 << 20
_OVERLAP_SHARE = 4
# Float64 arrays of so many values are made at a time.
_VALUES_AT_ONCE = 2 << 20

Progress = Callable[[str, int, int], None]


class Model(Protocol):
    """Whatever gives logits: a session, or a checkpoint in PyTorch."""

    @property
    def name(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def logits(self, ids: list[int], start: int) -> Iterator[Logits]:
        """After each token from the position `start` on, [n, vocab] at a time."""
        ...


@dataclass(frozen=True)
class PackageModel:
    """A session as one of the models of a comparison."""

    session: Session

    @property
    def name(self) -> str:
        return f"package {self.session.package.root.name}"

    @property
    def vocab_size(self) -> int:
        return self.session.vocab_size

    def logits(self, ids: list[int], start: int) -> Iterator[Logits]:
        return self.session.logits_in_pieces(ids, start)


@dataclass(frozen=True)
class Window:
    """Tokens begin to end are read; those from `first` on are predicted, and count."""

    begin: int
    first: int
    end: int


@dataclass(frozen=True)
class TokenText:
    """A text's tokens, and what the tokenizer puts before any text."""

    prefix: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def predicted(self) -> int:
        """The very first token only if there is a prefix that it follows."""
        return len(self.ids) - (0 if self.prefix else 1)

    def cut(self, tokens: int | None) -> TokenText:
        """No more predictions than these."""
        if tokens is None:
            return self
        return TokenText(self.prefix, self.ids[: tokens + (0 if self.prefix else 1)])

    def windows(self, window: int) -> Iterator[Window]:
        """Every token is predicted once: but for the first window's, after a quarter of a window
        at least."""
        overlap = max(1, window // _OVERLAP_SHARE)
        # The last token of a window is only predicted, never read.
        span = window + 1 - len(self.prefix)
        if span <= overlap:
            raise SessionError(
                f"a window of {window} tokens has no room to predict; use a larger one"
            )
        begin, first = 0, 0 if self.prefix else 1
        while first < len(self.ids):
            end = min(begin + span, len(self.ids))
            yield Window(begin, first, end)
            begin, first = end - overlap, end


@dataclass(frozen=True)
class Against:
    """The package beside a reference, over the same tokens."""

    reference: str
    loss: float  # the reference's, in nats a token
    perplexity: float
    kl: float  # mean KL(reference || package), in nats a token
    kl_standard_error: float
    top1_agreement: float  # share of the tokens whose likeliest prediction is the same


@dataclass(frozen=True)
class Measured:
    tokens: int  # predicted, each once
    loss: float  # nats a token
    against: Against | None


@dataclass(frozen=True)
class Evaluation:
    """Everything `edgewright evaluate` prints and writes."""

    package: str
    variant: str
    kernels: str
    bits_per_weight: float
    tokens: int  # predicted, each once
    window: int
    overlap: int
    loss: float  # nats a token
    perplexity: float
    against: Against | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def read_text(path: Path) -> str:
    """A file of UTF-8 text; anything else is refused in one line."""
    size = path.stat().st_size
    if size > LONGEST_TEXT_BYTES:
        raise SessionError(
            f"{path} has {size / 1e6:,.0f} MB; give a text of at most "
            f"{LONGEST_TEXT_BYTES / 1e6:,.0f} MB"
        )
    data = path.read_bytes()
    if not data.strip():
        raise SessionError(f"{path} is empty; a text is required")
    if b"\0" in data:
        raise SessionError(f"{path} is binary (byte {data.index(0)} is zero); a text is required")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SessionError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


def tokenise(codec: TextCodec, text: str) -> TokenText:
    return TokenText(leading_tokens(codec), tuple(codec.encode(text, special=False)))


def evaluate(
    session: Session,
    text: TokenText,
    *,
    against: Model | None = None,
    tokens: int | None = None,
    window: int | None = None,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """`tokens`: predict no more than these. `window`: the context's tokens, but no more than
    LONGEST_WINDOW, unless given."""
    window = _checked_window(session, window)
    model = PackageModel(session)
    measured = measure(model, text.cut(tokens), window, against=against, progress=progress)
    return Evaluation(
        package=session.package.root.name,
        variant=session.variant_name,
        kernels=session.kernels,
        bits_per_weight=session.package.manifest.model.bits_per_weight,
        tokens=measured.tokens,
        window=window,
        overlap=max(1, window // _OVERLAP_SHARE),
        loss=measured.loss,
        perplexity=_exp(measured.loss),
        against=measured.against,
    )


def measure(
    model: Model,
    text: TokenText,
    window: int,
    *,
    against: Model | None = None,
    progress: Progress = lambda *_: None,
) -> Measured:
    """Of any model; its context must hold a window."""
    if against is not None and against.vocab_size != model.vocab_size:
        raise SessionError(
            f"{model.name} predicts {model.vocab_size} tokens, {against.name} "
            f"{against.vocab_size}; they must be the same"
        )
    if text.predicted < 1:
        raise SessionError(
            f"the text has {len(text.ids)} tokens; at least "
            f"{len(text.ids) - text.predicted + 1} are required to predict one"
        )
    sums = _Sums()
    for each in text.windows(window):
        for found, expected, targets in _pieces(model, against, text, each):
            sums.add(found, expected, targets)
            progress("predicting", sums.tokens, text.predicted)
    compared = None if against is None else sums.against(against.name)
    return Measured(sums.tokens, sums.loss / sums.tokens, compared)


def _checked_window(session: Session, window: int | None) -> int:
    if window is None:
        return min(session.context_limit, LONGEST_WINDOW)
    if window > session.context_limit:
        raise SessionError(
            f"a window of {window} tokens, but the package's context holds "
            f"{session.context_limit}; use a smaller --window"
        )
    return window


_Piece = tuple[Logits, Logits | None, Sequence[int]]


def _pieces(
    package: Model, reference: Model | None, text: TokenText, window: Window
) -> Iterator[_Piece]:
    """Both models' logits of the same tokens, however each cuts its own, and what came next."""
    read = [*text.prefix, *text.ids[window.begin : window.end - 1]]
    start = len(text.prefix) + window.first - window.begin - 1
    rows = max(1, _VALUES_AT_ONCE // package.vocab_size)
    offset = window.first
    theirs = _Rows(reference.logits(read, start)) if reference is not None else None
    for piece in package.logits(read, start):
        for at in range(0, len(piece), rows):
            found = piece[at : at + rows]
            expected = None if theirs is None else theirs.take(len(found))
            yield found, expected, text.ids[offset : offset + len(found)]
            offset += len(found)


class _Rows:
    """Pieces in; as many rows as are asked for out."""

    def __init__(self, pieces: Iterator[Logits]) -> None:
        self._pieces = pieces
        self._held: Logits = next(pieces)

    def take(self, count: int) -> Logits:
        while len(self._held) < count:
            self._held = np.concatenate((self._held, next(self._pieces)))
        taken, self._held = self._held[:count], self._held[count:]
        return taken


class _Sums:
    """What is left of the logits."""

    def __init__(self) -> None:
        self.tokens = 0
        self.loss = 0.0
        self._reference_loss = 0.0
        self._kl = 0.0
        self._kl_squared = 0.0
        self._agreed = 0

    def add(self, found: Logits, expected: Logits | None, targets: Sequence[int]) -> None:
        rows, columns = np.arange(len(found)), np.asarray(targets, dtype=np.int64)
        q = _log_softmax(found)
        self.tokens += len(found)
        self.loss -= float(q[rows, columns].sum())
        _check_finite(q, "the package")
        if expected is None:
            return
        p = _log_softmax(expected)
        _check_finite(p, "the reference")
        self._reference_loss -= float(p[rows, columns].sum())
        with np.errstate(invalid="ignore"):  # what the reference rules out costs nothing
            apart = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q)).sum(-1)
        self._kl += float(apart.sum())
        self._kl_squared += float((apart * apart).sum())
        self._agreed += int((q.argmax(-1) == p.argmax(-1)).sum())

    def against(self, name: str) -> Against:
        loss, kl = self._reference_loss / self.tokens, self._kl / self.tokens
        variance = max(0.0, self._kl_squared / self.tokens - kl * kl)
        return Against(
            reference=name,
            loss=loss,
            perplexity=_exp(loss),
            kl=kl,
            kl_standard_error=math.sqrt(variance / self.tokens),
            top1_agreement=self._agreed / self.tokens,
        )


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _check_finite(values: NDArray[np.float64], whose: str) -> None:
    if np.isnan(values).any():
        raise SessionError(f"{whose} gave logits that are not numbers; nothing can be measured")


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
