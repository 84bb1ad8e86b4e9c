"""Durable files, locks and folders that other processes use at the same time.

Whatever counts as written is synced first, folder entries included (`manifests.atomic`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from manifests.atomic import add_mode as add_mode
from manifests.atomic import atomic_write as atomic_write
from manifests.atomic import sync as sync

try:
    import fcntl
except ImportError:  # a system without it
    fcntl = None  # type: ignore[assignment]

LARGEST_LIST = 256 << 20
"""Bytes that the list of a store's files may have: enough for two million of them, 15 TB."""
_BLOCK = 1 << 20
_ATTEMPTS = 100
_STALE_S = 3600.0
"""Longer than any single step of writing a store takes."""

T = TypeVar("T")


class IrregularFileError(OSError):
    """A device, a pipe or a folder where a file should be."""


def read_regular(path: Path, at_most: int) -> bytes:
    """A whole file, or one byte more than there may be: no device or pipe, which has no end.

    Raises:
        IrregularFileError: it is no regular file.
        OSError: there is none, or it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IrregularFileError(errno.EINVAL, "it is no regular file", str(path))
        return file.read(min(status.st_size, at_most) + 1)[: at_most + 1]


def files_below(folder: Path) -> Iterator[Path]:
    """All that lies below a folder but real folders; no link is followed."""
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
        yield from (path for path in (Path(parent, n) for n in folders) if path.is_symlink())


def make_folder(folder: Path, more: int = 0) -> None:
    """Make a folder and those above it; the new ones have ``more`` than the umask leaves."""
    if folder.is_dir():
        return
    make_folder(folder.parent, more)
    with suppress(FileExistsError):
        folder.mkdir()
        add_mode(folder, more)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, so that others who do the same wait; it is gone afterwards.

    A killed holder holds nothing. On systems and file systems without such locks nobody waits: the
    value is then False.
    """
    while fcntl is not None:
        file = retry_if_removed(path.parent, partial(path.open, "wb"))
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


def retry_if_removed(folder: Path, write: Callable[[], T]) -> T:
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


def os_error_message(error: OSError) -> str:
    """Why the system refused, in words that name the remedy's object."""
    full = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than the system allows",
        errno.EMFILE: "too many files are open (ulimit -n says how many may be)",
    }
    return full.get(error.errno or 0, str(error))


def make_tree_read_only(folder: Path) -> None:
    """Sync every file and folder below ``folder`` and take away the right to write the files."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            sync(path)
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        sync(Path(parent))


def seal(path: Path) -> None:
    """Take away everybody's right to write a file."""
    path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def remove_tree(folder: Path) -> None:
    """Remove a folder that another process may be removing too; of a link only the link."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def is_stale(folder: Path) -> bool:
    """Whether nothing in a folder was written for an hour: whoever wrote it was killed."""
    return time.time() - newest(folder) > _STALE_S


def newest(path: Path) -> float:
    """When a file, or something in a folder, was last written: seconds since the epoch."""
    latest = 0.0
    folders = (Path(parent) for parent, _, _ in os.walk(path))
    for found in (path, *folders, *files_below(path)):
        with suppress(FileNotFoundError):  # renamed or removed while we looked
            latest = max(latest, found.lstat().st_mtime)
    return latest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
