"""Directories and files of text go in; the documents to train on and those held out come out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewright.artifacts.errors import TrainingError

STDLIB = "stdlib"

# Not the library itself: tests, installed packages, old grammars, and tables of characters or
# topics that read like nothing else in it.
_NOT_STDLIB = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
# Never trained on, so that their loss tells how the model does on Python it has not seen.
STDLIB_HELD_OUT = {
    "configparser.py",
    "fractions.py",
    "heapq.py",
    "netrc.py",
    "queue.py",
    "sched.py",
    "shlex.py",
    "textwrap.py",
    "tomllib/_parser.py",
    "wsgiref/handlers.py",
}
_HELD_OUT_EVERY = 20
_TEXT_SUFFIXES = {".c", ".cc", ".h", ".js", ".md", ".py", ".pyi", ".rs", ".rst", ".toml", ".txt"}


@dataclass(frozen=True)
class Corpus:
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            for text in part:
                data = text.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
            digest.update(b"\xff" * 8)
        return digest.hexdigest()


def read_corpus(sources: Sequence[str]) -> Corpus:
    """Each source is a directory, a file, or `stdlib`: this Python's own library."""
    train: list[str] = []
    held_out: list[str] = []
    others: list[str] = []
    for source in sources:
        if source == STDLIB:
            for name, text in _stdlib():
                (held_out if name in STDLIB_HELD_OUT else train).append(text)
        else:
            others += [_read(path) for path in _files(Path(source))]
    more, kept = _split(others)
    corpus = Corpus((*train, *more), (*held_out, *kept))
    if not corpus.train:
        raise TrainingError(f"no text found in {', '.join(sources)}: name a directory or a file")
    return corpus


def _stdlib() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        # _sysconfigdata… lists this one machine's build settings.
        if _NOT_STDLIB.isdisjoint(inside.parts) and not inside.name.startswith("_sysconfigdata"):
            yield inside.as_posix(), _read(path)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise TrainingError(f"--text {source} is neither a directory, a file nor '{STDLIB}'")
    return sorted(p for p in source.rglob("*") if p.suffix in _TEXT_SUFFIXES and p.is_file())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 text ({error.reason} at {error.start})") from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None


def _split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Every twentieth document is held out; of fewer, the last tenth of the last one."""
    texts = [text for text in texts if text]
    if len(texts) >= _HELD_OUT_EVERY:
        chosen = range(_HELD_OUT_EVERY - 1, len(texts), _HELD_OUT_EVERY)
        return [t for i, t in enumerate(texts) if i not in chosen], [texts[i] for i in chosen]
    if not texts:
        return [], []
    cut = len(texts[-1]) * 9 // 10
    return [*texts[:-1], texts[-1][:cut]], [texts[-1][cut:]]
