"""A directory goes in; its manifest, and files that are what the manifest says, come out."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from edgewright.artifacts.claims import claimed
from edgewright.artifacts.errors import PackageError
from edgewright.artifacts.manifest import (
    EVIDENCE_PREFIX,
    MANIFEST_NAME,
    Compiled,
    Evidence,
    FileEntry,
    Manifest,
)
from edgewright.artifacts.package_paths import check_path, locate

MANIFEST_LIMIT_BYTES = 32 << 20
READ_LIMIT_BYTES = 2 << 30  # no graph is larger: protobuf ends there
_HASH_BYTES = 1 << 20
_OPEN_FLAGS: int = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)


@dataclass(frozen=True)
class Package:
    """Nothing is read but what the manifest lists, and nothing through a link.

    The hashes say that the files are those the manifest names, at the moment they are read. They
    do not say who made it: that is what `trust` and signatures are for.
    """

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: str | os.PathLike[str], verify: bool = False) -> Package:
        """Checks every path and size; with `verify` every hash too."""
        root = Path(os.path.abspath(directory))
        package = cls(root, _read_manifest(root))
        for path in package.entries:
            package._locate(path)
        if verify:
            package.verify()
        return package

    @cached_property
    def entries(self) -> Mapping[str, FileEntry]:
        """Every file but the manifest: those of the variants and tokenizer, then the evidence."""
        evidence = self.manifest.evidence.values()
        return dict(self.manifest.files) | {e.path: FileEntry(e.sha256, e.size) for e in evidence}

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.entries.values())

    def path(self, path: str) -> Path:
        """Where a listed file is; present, plain and of the right size, but not hashed."""
        return self._locate(path)[0]

    def read_verified(self, path: str, limit_bytes: int = READ_LIMIT_BYTES) -> bytes:
        """A listed file's bytes, whose hash is the listed one."""
        location, entry = self._locate(path)
        if entry.size > limit_bytes:
            raise PackageError(
                f"{self.root}: {path} has {entry.size} bytes; at most {limit_bytes} are allowed"
            )
        data = b"".join(self._chunks(path, location, entry.size))
        self._compare(path, entry, len(data), hashlib.sha256(data).hexdigest())
        return data

    def verified_path(self, path: str) -> Path:
        """Where a listed file is, after hashing it: for what must be loaded by name."""
        self._hash(path)
        return self.path(path)

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Hash every file; `progress` is told how many bytes came in since it was last called."""
        for path in self.entries:
            self._hash(path, progress)

    def read_evidence(self, name: str) -> bytes:
        if name not in self.manifest.evidence:
            known = ", ".join(self.manifest.evidence) or "none"
            raise PackageError(f"{self.root}: no evidence {name!r}; it has {known}")
        return self.read_verified(self.manifest.evidence[name].path)

    def add_evidence(self, name: str, data: bytes) -> Package:
        """Store a measurement under `name`, in place of an earlier one; the package, reopened.

        The file's name holds its hash, and the manifest is replaced in one step: at every moment
        the manifest on disk names evidence that is there.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = check_path(f"{EVIDENCE_PREFIX}{name}-{sha256[:12]}.json")
        try:
            with claimed(self.root):
                manifest = _read_manifest(self.root)  # another validate may have added to it
                before = manifest.evidence.get(name)
                added = dict(manifest.evidence) | {name: Evidence(path, sha256, len(data))}
                manifest = replace(manifest, evidence=added)
                content = manifest.to_bytes()
                Manifest.from_bytes(content)
                _make_plain_folder(self.root, EVIDENCE_PREFIX.rstrip("/"))
                self._swap_evidence(path, data, content, before.path if before else None)
        except OSError as error:
            raise PackageError(
                f"{self.root}: cannot store evidence {name!r}: {error.strerror}"
            ) from error
        return Package(self.root, manifest)

    def _swap_evidence(self, path: str, data: bytes, manifest: bytes, before: str | None) -> None:
        _replace(self.root / path, data)
        try:
            _replace(self.root / MANIFEST_NAME, manifest)
        except OSError:
            if before != path:
                (self.root / path).unlink(missing_ok=True)
            raise
        if before is not None and before != path:
            (self.root / before).unlink(missing_ok=True)

    def with_compiled(self, variant: str, compiled: Compiled, files: Mapping[str, Path]) -> Package:
        """What was compiled for a variant, in place of what was before; the package, reopened.

        `files` are copied to where `compiled` says they are. As none is replaced by another of its
        name, the manifest on disk names files that are there at every moment.
        """
        try:
            with claimed(self.root):
                manifest = _read_manifest(self.root)
                before = manifest.variant(variant).compiled
                added = {path: self._copy_in(path, source) for path, source in files.items()}
                gone = set() if before is None else set(before.paths()).difference(files)
                manifest = replace(
                    manifest,
                    variants=tuple(
                        replace(each, compiled=compiled) if each.name == variant else each
                        for each in manifest.variants
                    ),
                    files={
                        path: entry
                        for path, entry in sorted((dict(manifest.files) | added).items())
                        if path not in gone
                    },
                )
                content = manifest.to_bytes()
                Manifest.from_bytes(content)
                _replace(self.root / MANIFEST_NAME, content)
                for path in gone:
                    (self.root / path).unlink(missing_ok=True)
        except OSError as error:
            raise PackageError(
                f"{self.root}: cannot store what was compiled: {error.strerror}"
            ) from error
        return Package(self.root, manifest)

    def _copy_in(self, path: str, source: Path) -> FileEntry:
        target = self.root
        *folders, name = check_path(path).split("/")
        for folder in folders:
            _make_plain_folder(target, folder)
            target = target / folder
        digest, size = hashlib.sha256(), 0
        with _replacing(target / name) as file, source.open("rb") as read:
            while piece := read.read(_HASH_BYTES):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        return FileEntry(digest.hexdigest(), size)

    def _locate(self, path: str) -> tuple[Path, FileEntry]:
        entry = self.entries.get(path)
        if entry is None:
            raise PackageError(f"{self.root}: {path} is not listed in {MANIFEST_NAME}")
        location, status = locate(self.root, path)
        if status.st_size != entry.size:
            raise PackageError(
                f"{self.root}: {path} has {status.st_size} bytes, {entry.size} are required; "
                "copy or export the package again"
            )
        return location, entry

    def _hash(self, path: str, progress: Callable[[int], None] | None = None) -> None:
        location, entry = self._locate(path)
        digest, size = hashlib.sha256(), 0
        for chunk in self._chunks(path, location, entry.size):
            digest.update(chunk)
            size += len(chunk)
            if progress is not None:
                progress(len(chunk))
        self._compare(path, entry, size, digest.hexdigest())

    def _chunks(self, path: str, location: Path, size: int) -> Iterator[bytes]:
        """At most one byte more than `size`: enough to see that it is too long."""
        try:
            descriptor = os.open(location, _OPEN_FLAGS)
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise PackageError(f"{self.root}: {path} is no plain file")
                left = size + 1
                while left and (chunk := file.read(min(left, _HASH_BYTES))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise PackageError(f"{self.root}: cannot read {path}: {error.strerror}") from error

    def _compare(self, path: str, entry: FileEntry, size: int, sha256: str) -> None:
        if size != entry.size or sha256 != entry.sha256:
            raise PackageError(
                f"{self.root}: {path} is not what {MANIFEST_NAME} says: its sha256 is "
                f"{sha256[:12]}…, {entry.sha256[:12]}… is required; "
                "copy or export the package again"
            )


def _read_manifest(root: Path) -> Manifest:
    if not root.is_dir():
        found = "it is a file" if root.exists() else "there is no such directory"
        raise PackageError(f"{root} is not a package: {found}")
    if not os.path.lexists(root / MANIFEST_NAME):
        hint = "; it looks like a checkpoint: run edgewright export first"
        hint = hint if (root / "config.json").exists() else ""
        raise PackageError(f"{root} is not a package: it has no {MANIFEST_NAME}{hint}")
    location, status = locate(root, MANIFEST_NAME)
    if status.st_size > MANIFEST_LIMIT_BYTES:
        raise PackageError(
            f"{location} has {status.st_size} bytes; at most {MANIFEST_LIMIT_BYTES} are allowed"
        )
    try:
        with os.fdopen(os.open(location, _OPEN_FLAGS), "rb") as file:
            data = file.read(MANIFEST_LIMIT_BYTES)
    except OSError as error:
        raise PackageError(f"cannot read {location}: {error.strerror}") from error
    return Manifest.from_bytes(data, str(location))


def _make_plain_folder(root: Path, name: str) -> None:
    folder = root / name
    with suppress(FileExistsError):
        folder.mkdir()
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        raise PackageError(f"{folder} is no plain folder; remove it")


def _replace(path: Path, data: bytes) -> None:
    with _replacing(path) as file:
        file.write(data)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """The old content or the new one is there at every moment, whatever happens."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
