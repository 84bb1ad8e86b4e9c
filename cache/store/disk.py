"""Atomic, durable file writes, locks and tree operations, safe with concurrent processes.

Files and folder entries are synced before they count as written (`manifests.atomic`).
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
from manifests.budget import ALWAYS, Budget

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LARGEST_LIST = 64 << 20
"""Maximum size of a store's checksums in bytes: half a million files, 4 TB of features."""
_BLOCK = 1 << 20
_ATTEMPTS = 100
_STALE_S = 3600.0
"""Longer than any single step of writing a store."""

T = TypeVar("T")


class IrregularFileError(OSError):
    """A device, a pipe or a folder was found instead of a file."""


def read_regular(path: Path, at_most: int) -> bytes:
    """Read a regular file; of a larger one ``at_most`` + 1 bytes.

    Devices and pipes, which may never end, are refused.

    Raises:
        IrregularFileError: it is not a regular file.
        OverBudgetError: it does not fit into memory, or most of it is not on the disk.
        OSError: it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise IrregularFileError(errno.EINVAL, "not a regular file", str(path))
        wanted = min(status.st_size, at_most)
        if wanted > ALWAYS:
            Budget.of(file.fileno()).take(str(path), wanted)  # it may be a hole
        return file.read(wanted + 1)[: at_most + 1]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder except real folders; links are not followed."""
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)
        yield from (path for path in (Path(parent, n) for n in folders) if path.is_symlink())


def make_folder(folder: Path, more: int = 0) -> None:
    """Make a folder and its parents.

    A new one in a folder that its group may write gets the same group and permissions of the group,
    else the umask of one user would exclude the others.

    Args:
        folder: the folder.
        more: mode bits that new ones get in addition.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, more)
    with suppress(FileExistsError):
        folder.mkdir()
        share_with_group(folder, folder.parent)
        add_mode(folder, more)


def group_bits(folder: Path) -> int:
    """Permissions of the group in a folder that it may write; 0 in any other."""
    mode = folder.stat().st_mode
    return mode & stat.S_IRWXG if mode & stat.S_IWGRP else 0


def share_with_group(path: Path, parent: Path) -> None:
    """Give the group of ``parent``, if it may write there, the same permissions in ``path``."""
    bits = group_bits(parent)
    if not bits:
        return
    group, status = parent.stat().st_gid, path.stat()
    with suppress(PermissionError):  # another user's, or not in that group
        if status.st_gid != group:
            os.chown(path, -1, group)
        if status.st_mode & bits != bits:
            add_mode(path, bits)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, so that other processes wait for it; it is deleted afterwards.

    The lock of a killed process is released. Yields False, without waiting, on systems and file
    systems without such locks.

    Raises:
        ValueError: something else has the lock file's name: it is neither written to nor deleted.
    """
    while fcntl is not None:
        with os.fdopen(retry_if_removed(path.parent, partial(_open_lock, path)), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                break
            if not os.fstat(file.fileno()).st_nlink:
                continue  # its last holder deleted it: open the new one
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
    yield False


def _open_lock(path: Path) -> int:
    """Open a lock file, or make it; returns its descriptor.

    A folder of stores may be writable for others: the name may be a link to another file, a pipe
    whose opening would never return, or a file with content that a lock would delete.

    Raises:
        ValueError: it is not an empty file.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except PermissionError:
            if not os.path.lexists(path):
                raise
            lock = os.open(path, os.O_RDONLY | flags)  # another user's, which may be locked too
    except OSError as error:
        # A link, a folder, a socket or a device without driver; other errors are the system's.
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise
        raise _not_a_lock(path) from error
    status = os.fstat(lock)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        os.close(lock)
        raise _not_a_lock(path)
    return lock


def _not_a_lock(path: Path) -> ValueError:
    return ValueError(
        f"{path} should be an empty lock file, but is something else (a link, a pipe, a folder or "
        "a file with content). Nothing was changed; move it away and run the command again."
    )


def retry_if_removed(folder: Path, write: Callable[[], T]) -> T:
    """Call ``write``, which needs a folder that another process may remove at any moment.

    Raises:
        OSError: the folder was missing in all of many attempts.
    """
    for attempt in range(_ATTEMPTS):
        try:
            make_folder(folder)
            return write()
        except (FileNotFoundError, FileExistsError):  # the latter: removed in between
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def os_error_message(error: OSError) -> str:
    """Describe an error of the system in words that suggest the remedy."""
    full = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than the system allows",
        errno.EMFILE: "too many files are open (see ulimit -n)",
    }
    return full.get(error.errno or 0, str(error))


def make_tree_read_only(folder: Path) -> None:
    """Sync every file and folder below ``folder`` and make the files read-only.

    Where the group may write into the parent of ``folder``, it may replace and delete the tree.
    """
    read_only = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            sync(path)
            if stat.S_IMODE(path.stat().st_mode) == read_only:
                continue
            try:
                path.chmod(read_only)
            except PermissionError:  # another user's, who began this tree
                atomic_write(path, path.read_bytes())
                path.chmod(read_only)
        share_with_group(Path(parent), folder.parent)
        sync(Path(parent))


def make_read_only(path: Path) -> None:
    """Make a file read-only for all users."""
    path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))


def remove_tree(folder: Path) -> None:
    """Remove a folder, also while another process removes it; of a link only the link."""
    if folder.is_symlink():
        with suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def is_stale(folder: Path) -> bool:
    """Whether nothing in a folder was written for an hour: its writer was killed."""
    return time.time() - newest(folder) > _STALE_S


def newest(path: Path) -> float:
    """Last modification time of a file, or of anything in a folder: seconds since the epoch."""
    latest = 0.0
    folders = (Path(parent) for parent, _, _ in os.walk(path))
    for found in (path, *folders, *files_below(path)):
        with suppress(FileNotFoundError):  # renamed or removed in between
            latest = max(latest, found.lstat().st_mtime)
    return latest


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
