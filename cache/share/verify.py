"""Verify every byte of a store against its checksums, on this machine or on a share."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cache.share.location import UnreadableError
from cache.share.remote_store import RemoteStore
from cache.share.transfer import WORKERS, Progress, in_threads
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.chunks import read_column
from cache.store.consistency import UnlistedFileError, check_all_listed, check_index
from cache.store.disk import files_below
from cache.store.metadata import is_feature_file, read_array_metadata, read_attributes
from cache.store.recipe import STORABLE

_INDEX = tuple(f"{modality}/offsets/" for modality in STORABLE)


@dataclass(frozen=True)
class Fault:
    """A file that is not what was published.

    Attributes:
        file: path inside the store.
        problem: ``missing``, ``extra``, ``link`` (to elsewhere), ``wrong size``, ``changed`` or
            ``unreadable``. If all files are as published but the store is not readable:
            ``not listed`` for a file that is needed, or an error message.
        utterances: ids with rows in that file; empty if the file concerns all of them.
    """

    file: str
    problem: str
    utterances: tuple[str, ...] = ()


def verify(
    store: str | Path | RemoteStore,
    on_bytes: Progress | None = None,
    workers: int = WORKERS,
    checksums: Checksums | None = None,
) -> list[Fault]:
    """Check every file of ``store`` against its checksums.

    Args:
        store: a store's folder, or a store on a share, whose files are all read once.
        on_bytes: called with (bytes checked, bytes in total).
        workers: files read at once.
        checksums: those to compare with; by default the store's own.

    Returns:
        The faults by file name; empty if every file is as published. On a web server, which does
        not list its files, extra files are not found.

    Raises:
        ValueError: the store has no readable checksums.
        ShareError: the share is unreachable.
    """
    if isinstance(store, RemoteStore) and store.folder is None:
        return _verify_remote(store, checksums or store.published_checksums(), workers, on_bytes)
    store = Path(store.where.path) if isinstance(store, RemoteStore) else Path(store)
    checksums = checksums or Checksums.of(store)
    problems = _folder_problems(store, checksums, list(checksums.files), workers, on_bytes)
    for path in files_below(store):
        name = path.relative_to(store).as_posix()
        if path.is_symlink():
            problems[name] = "link"
        elif name not in checksums.files and name != CHECKSUMS:
            problems[name] = "extra"
    return _faults(store, checksums, problems)


def find_problems(
    target: RemoteStore,
    checksums: Checksums,
    check: bool = True,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> dict[str, str]:
    """Compare the files of a store on a share with the published list.

    Args:
        target: the store.
        checksums: the list.
        check: compare SHA-256 too; else only the sizes, for which no file is read.
        workers: files read at once.
        on_bytes: called after each file that is read.

    Returns:
        What is wrong with each file that is not as published, see :class:`Fault`, by file name.

    Raises:
        ShareError: the share is unreachable.
    """
    problems, same_size = {}, list(checksums.files)
    if target.share.listable:
        sizes = target.share.sizes(target.path)
        for name, expected in checksums.files.items():
            if sizes.get(name) != expected.size:
                problems[name] = "wrong size" if name in sizes else "missing"
        same_size = [name for name in same_size if name not in problems]
    if check and target.folder is not None:
        problems |= _folder_problems(target.folder, checksums, same_size, workers, on_bytes)
    elif check:
        problems |= _remote_problems(target, checksums, same_size, None, workers, on_bytes)
    return dict(sorted(problems.items()))


def _verify_remote(
    store: RemoteStore, checksums: Checksums, workers: int, on_bytes: Progress | None
) -> list[Fault]:
    problems = {}
    names = list(checksums.files)
    if store.share.listable:
        problems = find_problems(store, checksums, check=False)
        names = [name for name in names if name not in problems]
        for name in store.share.sizes(store.path).keys() - checksums.files.keys() - {CHECKSUMS}:
            problems[name] = "extra"
    with tempfile.TemporaryDirectory() as folder:  # for all files but those of the features
        index = Path(folder)
        problems |= _remote_problems(store, checksums, names, index, workers, on_bytes)
        return _faults(index, checksums, problems)


def _folder_problems(
    folder: Path,
    checksums: Checksums,
    names: Collection[str],
    workers: int,
    on_bytes: Progress | None,
) -> dict[str, str]:
    problems = {}

    def check_file(name: str) -> int:
        problem = checksums.problem(folder, name)
        if problem:
            problems[name] = problem
        return checksums.files[name].size

    total = sum(checksums.files[name].size for name in names)
    in_threads(check_file, names, workers, total, on_bytes)
    return problems


def _remote_problems(
    store: RemoteStore,
    checksums: Checksums,
    names: Collection[str],
    index: Path | None,
    workers: int,
    on_bytes: Progress | None,
) -> dict[str, str]:
    """Read files of a share and compare them; all but features are written to ``index``."""
    problems = {}

    def check_file(name: str) -> int:
        expected = checksums.files[name]
        try:
            problem, data = store.check(name, expected, tries=2)
        except UnreadableError:
            problem, data = "unreadable", b""
        if problem:
            problems[name] = problem
        elif index is not None and not is_feature_file(name):
            with suppress(OSError):  # a list may name a file and another one below it
                (index / name).parent.mkdir(parents=True, exist_ok=True)
                (index / name).write_bytes(data)
        return expected.size

    total = sum(checksums.files[name].size for name in names)
    in_threads(check_file, names, workers, total, on_bytes)
    return problems


def _faults(store: Path, checksums: Checksums, problems: dict[str, str]) -> list[Fault]:
    """Make faults of problems; ``store`` holds at least the intact files of the index."""
    if not any(name.rpartition("/")[2] == "zarr.json" for name in problems):
        problems = problems | _inconsistencies(store, checksums, problems)
    utterances_of = _UtterancesOfFile(store)
    return [Fault(f, problem, utterances_of(f)) for f, problem in sorted(problems.items())]


def _inconsistencies(store: Path, checksums: Checksums, faulty: Collection[str]) -> dict[str, str]:
    """Find faults of a store whose files are all as published."""
    try:
        check_all_listed(store, checksums.files)
        if not any(name.startswith(("utterances/", *_INDEX)) for name in faulty):
            check_index(store, read_attributes(store))
    except UnlistedFileError as error:
        return {error.file: "not listed"}
    except (ValueError, OSError) as error:
        return {"zarr.json": str(error)}
    return {}


class _UtterancesOfFile:
    """Maps a file to the utterances that have rows in it; the index is read once."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._index = cache(self._read_index)

    def __call__(self, file: str) -> tuple[str, ...]:
        """Return the utterances with rows in a chunk file; empty for any other file."""
        parts = file.split("/")
        if len(parts) != 5 or parts[0] not in STORABLE or parts[1:3] != ["values", "c"]:
            return ()
        try:
            rows, ids, starts, stops = self._index(parts[0])
            first = int(parts[3]) * rows
        except (OSError, ValueError, KeyError, TypeError, IndexError):  # the index is damaged
            return ()
        here = slice(
            np.searchsorted(stops, first, side="right"), np.searchsorted(starts, first + rows)
        )
        return tuple(ids[here].tolist())

    def _read_index(self, modality: str) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Return rows per chunk and, for utterances with rows, id, first row and end, ``[N]``."""
        folder = self._store / modality
        rows = read_array_metadata(folder / "values", 2).chunk[0]
        ids = read_column(self._store / "utterances" / "id")
        offsets = read_column(folder / "offsets")
        present = np.flatnonzero(np.diff(offsets))
        return rows, ids[present], offsets[present], offsets[present + 1]
