"""Tensors, graphs and files go in, piece by piece; a whole package comes out, or nothing at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.manifest import (
    BLOB_PREFIX,
    EVIDENCE_PREFIX,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
)
from edgewright.artifacts.package import Package
from edgewright.artifacts.package_paths import check_path
from edgewright.artifacts.siblings import Sibling, sweep

Piece = bytes | bytearray | memoryview

_COPY_BYTES = 4 << 20
_WRITE_BACK_BYTES = 64 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BINARY: int = getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Blob:
    """Bytes that stand in the package under their own hash."""

    path: str
    sha256: str
    size: int


class PackageWriter:
    """Writes beside `out` and renames at the end: there is never half a package.

    `with PackageWriter(out) as writer: ...; writer.finish(manifest)`. Whatever ends the block
    before finish() has returned removes all that was written.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self._out = Path(os.path.abspath(out))
        self._files: dict[str, FileEntry] = {}
        self._partial = itertools.count()
        self._sibling: Sibling | None = None
        self._refuse_existing()

    def __enter__(self) -> PackageWriter:
        with self._writing("a package"):
            sweep(self._out)
            self._sibling = Sibling(self._out)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._sibling is not None:
            self._sibling.discard()
            self._sibling = None

    def add_blob(self, pieces: Iterable[Piece]) -> Blob:
        """Streamed: at no time is more than one piece held. Equal bytes are stored once."""
        partial = f"{BLOB_PREFIX}partial{next(self._partial)}"
        entry = self._write(partial, pieces)
        blob = Blob(BLOB_PREFIX + entry.sha256, entry.sha256, entry.size)
        with self._writing(blob.path):
            if blob.path in self._files:
                self._at(partial).unlink()
            else:
                os.rename(self._at(partial), self._at(blob.path))
                self._files[blob.path] = entry
        return blob

    def path_of(self, blob: Blob) -> Path:
        """Where its bytes are to be read until the package is finished."""
        return self._at(blob.path)

    @property
    def folder(self) -> Path:
        """Where all that was added lies until the package is finished."""
        return self._open_sibling().path

    def add_bytes(self, path: str, data: Piece) -> None:
        self._check_new(path)
        self._files[path] = self._write(path, (data,))

    def add_file(self, path: str, source: str | os.PathLike[str]) -> None:
        self._check_new(path)
        self._files[path] = self._write(path, _pieces_of(Path(source)))

    def finish(self, manifest: Manifest) -> Package:
        """Fill in the files, prove that the manifest can be read again, and put all in place."""
        manifest = replace(manifest, files=dict(sorted(self._files.items())))
        data = manifest.to_bytes()
        manifest = Manifest.from_bytes(data)
        self._write(MANIFEST_NAME, (data,))
        with self._writing("the package"):
            self._sync()
            self._refuse_existing()
            self._open_sibling().move_to(self._out)
            self._sibling = None
            _sync_path(self._out.parent)
        return Package(self._out, manifest)

    def _write(self, path: str, pieces: Iterable[Piece]) -> FileEntry:
        target = self._at(path)
        digest, size = hashlib.sha256(), 0
        with self._writing(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        try:
            for piece in pieces:
                view = memoryview(piece).cast("B")
                digest.update(view)
                with self._writing(path):
                    _write_all(descriptor, view)
                    _write_back(descriptor, size, view.nbytes)
                size += view.nbytes
                del piece, view  # the next piece is made before the names are bound again
        except BaseException:
            os.close(descriptor)
            target.unlink()
            raise
        with self._writing(path):
            os.close(descriptor)
        return FileEntry(digest.hexdigest(), size)

    def _check_new(self, path: str) -> None:
        check_path(path)
        reserved = path == MANIFEST_NAME or path.startswith((BLOB_PREFIX, EVIDENCE_PREFIX))
        if reserved or path in self._files:
            reason = "reserved" if reserved else "already written"
            raise PackageError(f"{self._out}: {path} is {reason}; choose another path")

    def _sync(self) -> None:
        root = self._open_sibling().path
        folders = {root}
        for path in (*self._files, MANIFEST_NAME):
            target = self._at(path)
            _sync_path(target)
            folders.update(itertools.takewhile(lambda folder: folder != root, target.parents))
        for folder in folders:
            _sync_path(folder)

    def _at(self, path: str) -> Path:
        return self._open_sibling().path / path

    def _open_sibling(self) -> Sibling:
        if self._sibling is None:
            raise PackageError(f"{self._out}: the writer is not open; use it in a with block")
        return self._sibling

    def _refuse_existing(self) -> None:
        if os.path.lexists(self._out):
            raise PackageError(f"{self._out} exists; remove it or choose another output")

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise PackageError(
                    f"{self._out}: the disk is full ({error.strerror}) while writing {what}; "
                    "free some space or choose another output"
                ) from error
            reason = error.strerror or error
            raise PackageError(f"{self._out}: cannot write {what}: {reason}") from error


def _pieces_of(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb", buffering=0) as file:
            while piece := file.read(_COPY_BYTES):
                yield piece
    except OSError as error:
        raise PackageError(f"{source}: cannot read it: {error.strerror}") from error


def _write_all(descriptor: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(descriptor, view) :]


def _write_back(descriptor: int, start: int, count: int) -> None:
    """Begin to write long files back early, and keep them out of the page cache.

    A memory limit counts dirty pages, and the final fsync would wait for all of them at once.
    """
    if sys.platform != "linux":
        return
    end = start + count
    if end // _WRITE_BACK_BYTES > start // _WRITE_BACK_BYTES:
        os.posix_fadvise(descriptor, 0, end, os.POSIX_FADV_DONTNEED)


def _sync_path(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return  # Windows has no such thing
    flags = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    descriptor = os.open(path, flags | _BINARY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
