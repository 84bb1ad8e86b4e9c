"""Read and write ``checksums.json``, the list of a store's files with size and SHA-256."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cache.store.disk import LARGEST_LIST, read_regular, sha256_of
from cache.store.metadata import LARGEST_METADATA, is_count, is_sha256, parse_json

CHECKSUMS = "checksums.json"
LARGEST_FILE = 512 << 20
"""Maximum size of a file of a store in bytes: a chunk of features has about 8 MB, one of a column
of texts may have more."""


class FileSum(NamedTuple):
    """Size in bytes and SHA-256 (64 hex digits) of a file as published."""

    size: int
    sha256: str

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` has this size and SHA-256."""
        return len(data) == self.size and hashlib.sha256(data).hexdigest() == self.sha256


@dataclass(frozen=True)
class Checksums:
    """The published files of one store.

    Attributes:
        raw: the bytes of ``checksums.json`` itself.
        files: path inside the store -> size and SHA-256; ``checksums.json`` is not among them.
    """

    raw: bytes
    files: dict[str, FileSum]

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Checksums:
        """Parse the list; ``where`` is named in errors.

        Raises:
            ValueError: it is not such a list, or one of its paths leads out of the store.
        """
        plain = parse_json(raw, where)
        try:
            algorithm, entries = plain["algorithm"], plain["files"]
            files = {n: FileSum(e["bytes"], e["sha256"]) for n, e in entries.items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} cannot be read: {error!r}") from error
        if algorithm != "sha256" or "zarr.json" not in files:
            raise ValueError(f"{where} does not list the SHA-256 of a store's files")
        for name, entry in files.items():
            if not stays_below(name) or name == CHECKSUMS:
                raise ValueError(f"{where} names {name!r}, which is not a path inside a store")
            if not is_count(entry.size) or not is_sha256(entry.sha256):
                raise ValueError(f"{where} cannot be read: {name} has {entry!r:.200}")
            most = LARGEST_METADATA if name.endswith("zarr.json") else LARGEST_FILE
            if entry.size > most:
                raise ValueError(
                    f"{where}: {name} has {entry.size} bytes; such a file has {most} at most"
                )
        return cls(raw, files)

    @classmethod
    def of(cls, store: Path) -> Checksums:
        """Read the list of the store in a folder.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            raw = read_regular(store / CHECKSUMS, LARGEST_LIST)
        except OSError as error:
            raise ValueError(f"{store / CHECKSUMS} cannot be read: {error}") from error
        return cls.parse(raw, str(store / CHECKSUMS))

    @property
    def content(self) -> str:
        """Digest of the store's content, 64 hex digits: equal only for byte-identical stores."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def size(self) -> int:
        """Size of the store in bytes."""
        return sum(entry.size for entry in self.files.values()) + len(self.raw)

    def problem(self, folder: Path, name: str) -> str:
        """Compare a file with its checksum; empty if they match.

        Otherwise ``missing``, ``link`` (the file or a folder above it is a symbolic link),
        ``wrong size``, ``changed``, or ``unreadable`` (no permission, or a failing disk).
        """
        path = folder / name
        try:
            if is_linked(folder, name):
                return "link"
            if not path.is_file():
                return "missing"
            if path.stat().st_size != self.files[name].size:
                return "wrong size"
            return "" if sha256_of(path) == self.files[name].sha256 else "changed"
        except OSError:
            return "unreadable"


def identity_of(store: Path) -> tuple[int, ...] | None:
    """Device, inode and time of the file of a store that is written last; None if it is missing.

    It changes when the store is replaced by another one.
    """
    try:
        status = (store / CHECKSUMS).stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json``: size and SHA-256 of every other file of the store."""
    files: dict[str, dict[str, Any]] = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    for name, entry in files.items():
        if entry["bytes"] > LARGEST_FILE:
            raise ValueError(
                f"{folder / name} has {entry['bytes']} bytes, a file of a store {LARGEST_FILE} at "
                "most: shorten the texts of its utterances"
            )
    text = json.dumps({"algorithm": "sha256", "files": files}, indent=1, sort_keys=True)
    if len(text) > LARGEST_LIST:
        raise ValueError(
            f"{folder}: {len(files)} files are too many for one store; make one for each part of "
            "the dataset"
        )
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")


def is_linked(folder: Path, name: str) -> bool:
    """Whether a path inside a store is a symbolic link, or is behind one."""
    path = PurePosixPath(name)
    inside = [part for part in (path, *path.parents) if part.name]
    return any((folder / part).is_symlink() for part in inside)


def stays_below(name: str) -> bool:
    """Whether an untrusted relative path stays below the folder that it is joined to."""
    path = PurePosixPath(name)
    plain = str(path) == name and "\\" not in name and name.isprintable() and name != "."
    return plain and not path.is_absolute() and ".." not in path.parts
