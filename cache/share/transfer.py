"""Download and upload files of shared stores, several at a time, each checked by its SHA-256."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cache.reader import FeatureStore
from cache.share.location import Location
from cache.share.remote_store import RemoteStore
from cache.store.checksums import CHECKSUMS, Checksums, is_linked
from cache.store.disk import atomic_write, make_folder
from cache.store.metadata import is_feature_file
from cache.store.temp_paths import TempPath

WORKERS = 8
"""Files transferred at once; each is held in memory, a chunk of about 8 MB."""

_LARGE = 32 << 20  # bytes
_one_large = threading.Lock()  # files larger than that are transferred one after the other

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes total)."""


def download(
    source: RemoteStore,
    checksums: Checksums,
    names: Iterable[str],
    folder: Path,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> int:
    """Download those files that ``folder`` lacks or that differ from the published ones.

    Args:
        source: the shared store.
        checksums: its checksums.
        names: paths inside the store.
        folder: a store, or a folder that becomes one.
        workers: files transferred at once.
        on_bytes: called after each file.

    Returns:
        Number of files downloaded.

    Raises:
        ShareError: a file on the share is not as published; files already downloaded are kept.
        OSError: a file cannot be written, or a link in ``folder`` leads out of it.
    """
    make_folder(folder)
    needed = [name for name in sorted(names) if checksums.problem(folder, name)]
    total = sum(checksums.files[name].size for name in needed)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise OSError(f"{total / 1e9:.2f} GB must be downloaded, {free / 1e9:.2f} GB are free")

    def download_file(name: str) -> int:
        with _one_large if checksums.files[name].size > _LARGE else nullcontext():
            return download_alone(name)

    def download_alone(name: str) -> int:
        data = source.read(name, checksums.files[name])
        path = folder / name
        if is_linked(folder, path.parent.relative_to(folder).as_posix()):
            raise OSError(f"{path.parent} is a symlink, or is behind one: remove the link")
        make_folder(path.parent)
        # The temporary file is outside: a killed pull or repair leaves nothing in a store.
        atomic_write(path, data, TempPath.FILE.next_to(folder))
        return len(data)

    in_threads(download_file, needed, workers, total, on_bytes)
    return len(needed)


@contextmanager
def open_remote_metadata(source: RemoteStore, checksums: Checksums) -> Iterator[FeatureStore]:
    """Open a shared store without its features: only its other files are downloaded and checked.

    Raises:
        ShareError: a file is not as published.
    """
    names = [name for name in checksums.files if not is_feature_file(name)]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, source.name)
        download(source, checksums, names, store)
        (store / CHECKSUMS).write_bytes(checksums.raw)
        yield FeatureStore.open(store)


def upload(
    read: Callable[[str], bytes],
    checksums: Checksums,
    names: Collection[str],
    share: Location,
    place: str,
    temporary: str,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> None:
    """Upload files of a store.

    Args:
        read: returns the content of a file; it has compared it with its checksum.
        checksums: the store's checksums.
        names: paths inside the store.
        share: the share to write to.
        place: folder of the files, relative to the share.
        temporary: folder for incomplete files, relative to the share.
        workers: files transferred at once.
        on_bytes: called after each file.

    Raises:
        ShareError: a file cannot be written.
    """

    def upload_file(name: str) -> int:
        data = read(name)
        share.write(f"{place}/{name}", data, temporary)
        return len(data)

    total = sum(checksums.files[name].size for name in names)
    in_threads(upload_file, names, workers, total, on_bytes)


def read_local(store: Path, checksums: Checksums, name: str) -> bytes:
    """Read a file of a local store and compare it with its checksum.

    Raises:
        ValueError: the file is damaged or cannot be read.
    """
    try:
        data = (store / name).read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise ValueError(f"{store}: {name} cannot be read: {error.strerror}") from error
    if not checksums.files[name].matches(data):
        raise ValueError(f"{store}: {name} is damaged; run: python -m cache verify {store}")
    return data


def in_threads(
    work: Callable[[str], int],
    names: Collection[str],
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
