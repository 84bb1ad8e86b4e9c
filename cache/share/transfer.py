"""Files of a shared store, brought or sent several at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cache.share.remote_store import RemoteStore
from cache.store.checksums import Checksums, is_linked
from cache.store.disk import atomic_write
from cache.store.temp_paths import TempPath

WORKERS = 8
"""Files in flight at once; each is held in memory, a chunk of about 8 MB."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


def fetch(
    source: RemoteStore,
    checksums: Checksums,
    names: Iterable[str],
    folder: Path,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> int:
    """Bring files of a store into ``folder``, those that are not there or not as published.

    Returns:
        How many were copied.

    Raises:
        ShareError: a file is not as published on the share either; the good ones are kept.
        OSError: they cannot be written, or a link in ``folder`` would lead out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = [name for name in sorted(names) if checksums.problem(folder, name)]
    in_all = sum(checksums.files[name].size for name in needed)
    free = shutil.disk_usage(folder).free
    if in_all > free:
        raise OSError(f"{in_all / 1e9:.2f} GB are to come and {free / 1e9:.2f} GB are free")

    def bring(name: str) -> int:
        data = source.read(name, checksums.files[name])
        path = folder / name
        if is_linked(folder, path.parent.relative_to(folder).as_posix()):
            raise OSError(f"{path.parent} is, or lies behind, a link to elsewhere; remove the link")
        path.parent.mkdir(parents=True, exist_ok=True)
        # It waits outside: a killed pull or repair leaves nothing in a store.
        atomic_write(path, data, TempPath.FILE.next_to(folder))
        return len(data)

    in_threads(bring, needed, workers, in_all, on_bytes)
    return len(needed)


def in_threads(
    work: Callable[[str], int],
    names: Sequence[str],
    workers: int,
    in_all: int,
    on_bytes: Progress | None,
) -> None:
    """Do the work, which returns bytes, for every name.

    The first error ends it, once what is under way is done.
    """
    pool = ThreadPoolExecutor(workers)
    done = 0
    try:
        for future in as_completed([pool.submit(work, name) for name in names]):
            done += future.result()
            if on_bytes is not None:
                on_bytes(done, in_all)
    finally:
        pool.shutdown(cancel_futures=True)
