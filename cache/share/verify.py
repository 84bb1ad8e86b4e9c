"""Verify every byte of a store against its checksums, and repair it from another copy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cache.share.location import Location, ShareError
from cache.share.remote_store import RemoteStore
from cache.share.transfer import download
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.chunks import read_column
from cache.store.consistency import UnlistedFileError, check_all_listed, check_index
from cache.store.disk import atomic_write, files_below, make_read_only
from cache.store.metadata import read_array_metadata, read_attributes
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


def verify(store: str | Path, on_file: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Check every file of ``store`` against its checksums.

    Args:
        store: a store in a folder.
        on_file: called with (files done, files total).

    Returns:
        The faults by file name; empty if every file is as published.

    Raises:
        ValueError: the store has no readable checksums.
    """
    store = Path(store)
    checksums = Checksums.of(store)
    problems = {}
    for path in files_below(store):
        name = path.relative_to(store).as_posix()
        if path.is_symlink():
            problems[name] = "link"
        elif name not in checksums.files and name != CHECKSUMS:
            problems[name] = "extra"
    for done, name in enumerate(sorted(checksums.files), 1):
        problem = checksums.problem(store, name)
        if problem:
            problems[name] = problem
        if on_file is not None:
            on_file(done, len(checksums.files))
    if not any(name.rpartition("/")[2] == "zarr.json" for name in problems):
        problems |= _inconsistencies(store, checksums, problems)
    utterances_of = _UtterancesOfFile(store)
    return [Fault(f, problem, utterances_of(f)) for f, problem in sorted(problems.items())]


def repair(store: str | Path, source: str) -> list[Fault]:
    """Replace every faulty file by that of another copy, and remove files that do not belong there.

    Each file is compared with this store's own checksums before it is replaced, so a wrong copy
    does no harm. If the checksums are lost, they are taken from the copy.

    Args:
        store: the store to repair.
        source: another copy, folder or URL: the store, or the share that holds it.

    Returns:
        The faults that were repaired.

    Raises:
        ValueError: the store does not exist or cannot be written.
        ShareError: the copy is unreachable, or the files are faulty there too; the other files are
            repaired.
    """
    store = Path(store).resolve()
    if not store.is_dir():
        raise ValueError(f"{store}: no such folder; `python -m cache pull` fetches a shared store")
    where = Location.parse(source)
    named = where.name.endswith(".zarr")
    copy = RemoteStore.parse(source) if named else RemoteStore(where, store.parent.name, store.name)
    try:
        Checksums.of(store)
    except ValueError:
        if store.name != copy.name:  # else all files of a mistyped folder would be deleted
            raise ValueError(
                f"{store} has no readable {CHECKSUMS} and is not named {copy.name}. Nothing was "
                "changed; give the store's own folder"
            ) from None
        atomic_write(store / CHECKSUMS, copy.published_checksums().raw)
        make_read_only(store / CHECKSUMS)
    checksums, faults = Checksums.of(store), verify(store)
    unrepaired = []
    for fault in faults:
        try:
            _repair_file(store, fault, checksums, copy)
        except ShareError as error:
            unrepaired.append(str(error))
        except OSError as error:
            raise ValueError(f"{store} cannot be repaired: {error}") from error
    if unrepaired:
        raise ShareError(f"{len(unrepaired)} files have no intact copy there: {unrepaired[0]}")
    return faults


def _repair_file(store: Path, fault: Fault, checksums: Checksums, copy: RemoteStore) -> None:
    """Repair one file; a link is removed, its target is not touched.

    Raises:
        ShareError: no copy can repair it.
    """
    path = store / fault.file
    if fault.file == CHECKSUMS:  # it is a link, and its target was read
        atomic_write(path, checksums.raw)
        make_read_only(path)
        return
    if fault.problem == "extra" or path.is_symlink():
        path.unlink()
    elif fault.file not in checksums.files or not checksums.problem(store, fault.file):
        raise ShareError(f"{path}: {fault.problem}; published like this; extract or pull it again")
    if fault.file in checksums.files:
        download(copy, checksums, [fault.file], store)
        make_read_only(path)


def _inconsistencies(store: Path, checksums: Checksums, faulty: Collection[str]) -> dict[str, str]:
    """Find faults of a store whose files are all as published."""
    try:
        check_all_listed(store, checksums.files)
        if not any(name.startswith(("utterances/", *_INDEX)) for name in faulty):
            check_index(store, read_attributes(store))
    except UnlistedFileError as error:
        return {error.file: "not listed"}
    except ValueError as error:
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
