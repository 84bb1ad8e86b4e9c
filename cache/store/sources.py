"""Identify source videos by their contents, and remember the SHA-256 of unchanged files.

Hashing reads every byte once. The index next to the stores remembers each file's SHA-256 with its
size, times and inode, so that the next run hashes only what changed. A lost index is rebuilt.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cache.store.disk import LARGEST_LIST, atomic_write, read_regular, sha256_of
from cache.store.metadata import is_sha256
from manifests.printing import get_logger

log = get_logger(__name__)

PER_FILE_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
"""Errors of a single file; any other (a full disk, a lost mount) is a fault of the machine."""
_THREADS = min(8, os.cpu_count() or 1)
_SETTLED_S = 2.0
"""A file changed more recently is not remembered: another change may leave its times the same."""
_SAVE_EVERY_S = 60.0
_TRIES = 3

Signature = tuple[int, int, int, int]
"""Size in bytes, modification time and change time in ns, inode."""


@dataclass(frozen=True)
class Source:
    """The content of a file that features were, or are to be, extracted from.

    Attributes:
        bytes: its size; 0 if it is missing or cannot be read.
        sha256: 64 hex digits; empty if it is missing or cannot be read.
        signature: its size, times and inode when it was hashed; None if it is missing.
        before: of a missing file, the SHA-256 of the one that was at its path; empty if unknown.
    """

    bytes: int = 0
    sha256: str = ""
    signature: Signature | None = None
    before: str = ""

    def is_at(self, path: Path) -> bool:
        """Whether the file at ``path`` still has this content; hashed only if its times differ."""
        found = signature_of(path)
        if found is not None and found == self.signature:
            return True
        if found is not None and self.sha256 and found[0] != self.bytes:
            return False
        return _hash_once(path, found).sha256 == self.sha256


MISSING = Source()


def signature_of(path: Path) -> Signature | None:
    """Size, times and inode of a regular file; None if it is missing or something else.

    Raises:
        OSError: a fault of the machine.
    """
    try:
        found = path.stat()
    except OSError as error:
        if error.errno not in PER_FILE_ERRNOS:
            raise
        return None
    except ValueError:  # a null character in the name
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def hash_source(path: Path) -> Source:
    """Read and hash a file.

    Raises:
        ValueError: it is being written to.
        OSError: a fault of the machine.
    """
    for _ in range(_TRIES):
        before = signature_of(path)
        if before is None:
            return MISSING
        try:
            sha256 = sha256_of(path)
        except OSError as error:
            if error.errno in PER_FILE_ERRNOS or error.errno == errno.EIO:
                return MISSING  # decoding it tells why
            raise OSError(error.errno, error.strerror, str(path)) from error
        if signature_of(path) == before:
            return Source(before[0], sha256, before)
    raise ValueError(f"{path} is being written to: run again when it is complete")


@lru_cache(maxsize=1024)
def _hash_once(path: Path, signature: Signature | None) -> Source:
    """:func:`hash_source`, once per state of the file."""
    return hash_source(path)


class SourceIndex:
    """The remembered files of a dataset, in ``<stores>/.sources-<dataset>.json``."""

    def __init__(self, stores: Path, dataset: str) -> None:
        self._path = stores / f".sources-{dataset}.json"
        self._files = _read(self._path)
        self._new: dict[str, Source] = {}

    def identify(
        self,
        paths: Iterable[Path],
        rehash: bool = False,
        on_file: Callable[[int, int], None] | None = None,
    ) -> dict[Path, Source]:
        """Return the source at each path; files that are not remembered are hashed.

        Args:
            paths: absolute paths.
            rehash: hash all files.
            on_file: called with (bytes hashed, bytes to hash).

        Raises:
            ValueError: a file is being written to.
            OSError: a fault of the machine.
        """
        found: dict[Path, Source] = {}
        unknown: dict[Path, int] = {}
        for path in dict.fromkeys(paths):
            signature = signature_of(path)
            known = None if rehash and signature else self.remembered(path, signature)
            if known is not None:
                found[path] = known
            else:
                unknown[path] = signature[0] if signature else 0
        done, total = 0, sum(unknown.values())
        pool, saved = ThreadPoolExecutor(_THREADS), time.monotonic()
        try:
            hashing = {pool.submit(hash_source, path): path for path in unknown}
            for future in as_completed(hashing):
                path = hashing[future]
                found[path] = future.result()
                done += unknown[path]
                if on_file is not None:
                    on_file(done, total)
                self._remember(path, found[path])
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    self._save()
                    saved = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            self._save()
        return found

    def remembered(self, path: Path, signature: Signature | None) -> Source | None:
        """The source of an unchanged file; None if it must be hashed."""
        known = self._new.get(str(path)) or self._files.get(str(path))
        if signature is None:
            return MISSING if known is None else Source(before=known.sha256)
        return known if known is not None and known.signature == signature else None

    def _remember(self, path: Path, source: Source) -> None:
        if source.signature is not None:
            changed = max(source.signature[1:3]) / 1e9
            if changed < time.time() - _SETTLED_S:
                self._new[str(path)] = source

    def _save(self) -> None:
        """Write the index, with what other runs have written meanwhile.

        Without it the next run hashes again, so a folder that cannot be written is not an error.
        """
        if not self._new:
            return
        files = {**_read(self._path), **self._new}
        plain = {p: [s.sha256, *(s.signature or ())] for p, s in files.items()}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"version": 1, "files": plain}, indent=0, sort_keys=True)
            atomic_write(self._path, text.encode())


def _read(path: Path) -> dict[str, Source]:
    """Read an index; one that is missing or damaged is empty."""
    try:
        plain = json.loads(read_regular(path, LARGEST_LIST))
        files = {}
        for name, (sha256, *numbers) in plain["files"].items():
            size, mtime, ctime, inode = numbers
            if not is_sha256(sha256) or {*map(type, numbers)} != {int}:
                raise ValueError(name)
            files[name] = Source(size, sha256, (size, mtime, ctime, inode))
        return files
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.info("%s is ignored: %r; the files are hashed again", path, error)
        return {}
