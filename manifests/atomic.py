"""Files that are either whole or absent: written aside, flushed to disk, renamed into place."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a fresh path next to `path`; on success it takes `path`'s place, on failure it goes.

    The name is unique, so two processes that write the same file never share a half-written one:
    the last to finish wins, and a reader sees one of the two, whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield aside
        _fsync(aside)
        aside.replace(path)
        # The rename itself lives in the folder: without this a power cut may undo it.
        _fsync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
