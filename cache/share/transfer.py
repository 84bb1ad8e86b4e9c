"""Transfer files of shared stores, several at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from cache.reader import FeatureStore
from cache.share.remote_store import RemoteStore
from cache.store.checksums import CHECKSUMS, Checksums, is_linked
from cache.store.disk import atomic_write
from cache.store.recipe import STORABLE
from cache.store.temp_paths import TempPath

WORKERS = 8
"""Files in flight at once; each is held in memory, a chunk of about 8 MB."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes total)."""


def fetch(
    source: RemoteStore,
    checksums: Checksums,
    names: Iterable[str],
    folder: Path,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> int:
    """Download those files of a store that ``folder`` lacks or that differ from the published ones.

    Returns:
        Number of files downloaded.

    Raises:
        ShareError: a file on the share is not as published; files already downloaded are kept.
        OSError: a file cannot be written, or a link in ``folder`` leads out of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = [name for name in sorted(names) if checksums.problem(folder, name)]
    total = sum(checksums.files[name].size for name in needed)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise OSError(f"{total / 1e9:.2f} GB must be downloaded, {free / 1e9:.2f} GB are free")

    def download(name: str) -> int:
        data = source.read(name, checksums.files[name])
        path = folder / name
        if is_linked(folder, path.parent.relative_to(folder).as_posix()):
            raise OSError(f"{path.parent} is a symlink, or is behind one: remove the link")
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary file is outside: a killed pull or repair leaves nothing in a store.
        atomic_write(path, data, TempPath.FILE.next_to(folder))
        return len(data)

    in_threads(download, needed, workers, total, on_bytes)
    return len(needed)


@contextmanager
def open_remote_metadata(source: RemoteStore, checksums: Checksums) -> Iterator[FeatureStore]:
    """Open a shared store without its features: only its other files are downloaded and checked.

    Raises:
        ShareError: a file is not as published.
    """
    features = tuple(f"{modality}/values/c/" for modality in STORABLE)
    names = [name for name in checksums.files if not name.startswith(features)]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, source.name)
        fetch(source, checksums, names, store)
        (store / CHECKSUMS).write_bytes(checksums.raw)
        yield FeatureStore.open(store)


def in_threads(
    work: Callable[[str], int],
    names: Sequence[str],
    workers: int,
    total: int,
    on_bytes: Progress | None,
) -> None:
    """Call ``work``, which returns a number of bytes, for every name.

    The first error is raised once the calls under way are done; the others are not started.
    """
    pool = ThreadPoolExecutor(workers)
    done = 0
    try:
        for future in as_completed([pool.submit(work, name) for name in names]):
            done += future.result()
            if on_bytes is not None:
                on_bytes(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
