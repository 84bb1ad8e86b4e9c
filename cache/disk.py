"""Files that are either there and whole or not there.

``os.replace`` alone survives a killed process but not a power cut: the rename may reach the disk
before the data. So everything that counts as written was synced first, folder entries included.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

try:
    import fcntl
except ImportError:  # a system without it
    fcntl = None  # type: ignore[assignment]

_BLOCK = 1 << 20
_ATTEMPTS = 100
_STALE_S = 3600.0
"""Longer than any single step of writing a store takes."""

T = TypeVar("T")


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (new names, renames) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes, aside: Path | None = None) -> None:
    """Write ``data`` to ``path`` so that a reader sees all of it or no file.

    Args:
        path: the file.
        data: what it shall hold.
        aside: where the bytes wait until they are whole, on the same file system; by default beside
            ``path``. A killed process leaves that file behind.
    """
    aside = aside or path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, so that others who do the same wait; it is gone afterwards.

    A killed holder holds nothing. On systems and file systems without such locks nobody waits: the
    value is then False.
    """
    while fcntl is not None:
        file = where_folders_vanish(path.parent, partial(path.open, "wb"))
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                break
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its last holder removed it: others hold another file by now
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
    yield False


def where_folders_vanish(folder: Path, write: Callable[[], T]) -> T:
    """Do ``write`` in a folder that another run may remove at any moment.

    Raises:
        OSError: the folder was gone in every one of many attempts.
    """
    for attempt in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return write()
        except (FileNotFoundError, FileExistsError):  # the latter: it went while we looked at it
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def plainly(error: OSError) -> str:
    """Why the system refused, in words that name the remedy's object."""
    full = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than the system allows",
        errno.EMFILE: "too many files are open (ulimit -n says how many may be)",
    }
    return full.get(error.errno or 0, str(error))


def seal_tree(folder: Path) -> None:
    """Sync every file and folder below ``folder`` and take away the right to write the files."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        sync_folder(Path(parent))


def seal(path: Path) -> None:
    """Take away everybody's right to write a file."""
    path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def remove_tree(folder: Path) -> None:
    """Remove a folder that another process may be removing too."""
    shutil.rmtree(folder, ignore_errors=True)


def is_stale(folder: Path) -> bool:
    """Whether nothing in a folder was written for an hour: whoever wrote it was killed."""
    newest = 0.0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            with suppress(FileNotFoundError):  # renamed or removed while we looked
                newest = max(newest, path.stat().st_mtime)
    return time.time() - newest > _STALE_S


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
