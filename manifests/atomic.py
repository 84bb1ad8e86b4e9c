"""Atomic, durable file writes: a reader sees the whole file or no file.

A rename alone survives a killed process but not a power cut, since it may reach the disk before the
file's content. So the content is synced before the rename, and the folder after it. A killed
process leaves its temporary file behind.
"""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path, temporary: Path | None = None, mode: int = 0) -> Iterator[Path]:
    """Yield a temporary path; on success it is renamed to `path`, on failure it is deleted.

    Processes that write the same file do not share a temporary path: the last to finish wins.

    Args:
        path: the file, in an existing folder; an existing file is replaced.
        temporary: path to write to, on the same file system; by default a unique name next to
            `path`.
        mode: permission bits to add to those that the umask leaves.
    """
    temporary = temporary or path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        add_mode(temporary, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def atomic_write(path: Path, data: bytes, temporary: Path | None = None, mode: int = 0) -> None:
    """Write `data` to `path`; the arguments are those of `atomic_path`."""
    with atomic_path(path, temporary, mode) as writable:
        writable.write_bytes(data)


def sync(path: Path) -> None:
    """Flush to disk a file's content, or a folder's entries (new names, renames)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add_mode(path: Path, mode: int) -> None:
    """Add permission bits to a file or folder, for instance those that the umask removed."""
    if mode:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
