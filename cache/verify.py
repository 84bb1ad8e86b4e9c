"""Whether every byte of a store is what was published."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.assemble import CHECKSUMS
from cache.checksums import Checksums
from cache.chunks import read_column
from cache.disk import seal, write_whole
from cache.fetch import fetch
from cache.location import Location, ShareError
from cache.recipe import STORABLE
from cache.share import Shared


@dataclass(frozen=True)
class Fault:
    """A file that is not what was published.

    Attributes:
        file: path inside the store.
        problem: ``missing``, ``extra``, ``wrong size``, ``changed`` or ``unreadable``.
        utterances: ids with rows in that file; empty where it concerns them all.
    """

    file: str
    problem: str
    utterances: tuple[str, ...] = ()


def verify(store: str | Path, on_file: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Check every file of ``store`` against its checksums; no faults, an empty list.

    Raises:
        ValueError: the store has no readable checksums.
    """
    store = Path(store)
    checksums = Checksums.of(store)
    present = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
    problems = dict.fromkeys(present - checksums.files.keys() - {CHECKSUMS}, "extra")
    for done, name in enumerate(sorted(checksums.files), 1):
        problem = checksums.problem(store, name)
        if problem:
            problems[name] = problem
        if on_file is not None:
            on_file(done, len(checksums.files))
    return [Fault(f, problem, _concerned(store, f)) for f, problem in sorted(problems.items())]


def repair(store: str | Path, source: str) -> list[Fault]:
    """Put every faulty file right from another copy, and remove files that do not belong there.

    What comes from the copy is compared with this store's own checksums before it takes its place,
    so a wrong copy cannot harm. Lost checksums themselves are taken from the copy.

    Args:
        store: the store to repair.
        source: another copy, folder or URL: the store, or the share that holds it.

    Returns:
        The faults that were repaired.

    Raises:
        ValueError: there is no store, or it cannot be written.
        ShareError: the copy is out of reach, or the files it should give are faulty there too; what
            could be repaired is.
    """
    store = Path(store).resolve()
    if not store.is_dir():
        raise ValueError(f"{store}: there is no such folder; python -m cache pull brings a store")
    where = Location.parse(source)
    named = where.name.endswith(".zarr")
    copy = Shared.parse(source) if named else Shared(where, store.parent.name, store.name)
    try:
        Checksums.of(store)
    except ValueError:
        theirs = copy.checksums()
        if theirs is None:
            raise ShareError(f"{copy}: there is no published store") from None
        write_whole(store / CHECKSUMS, theirs.raw)
        seal(store / CHECKSUMS)
    checksums, faults = Checksums.of(store), verify(store)
    unrepaired = []
    for fault in faults:
        try:
            if fault.problem == "extra":
                (store / fault.file).unlink()
            else:
                fetch(copy, checksums, [fault.file], store)
                seal(store / fault.file)
        except ShareError as error:
            unrepaired.append(str(error))
        except OSError as error:
            raise ValueError(f"{store} cannot be repaired: {error}") from error
    if unrepaired:
        raise ShareError(f"{len(unrepaired)} files have no good copy there: {unrepaired[0]}")
    return faults


def _concerned(store: Path, file: str) -> tuple[str, ...]:
    """The utterances with rows in a chunk file; none if the file concerns all of them."""
    parts = file.split("/")
    if len(parts) != 5 or parts[0] not in STORABLE or parts[1:3] != ["values", "c"]:
        return ()
    try:
        meta = json.loads((store / parts[0] / "values" / "zarr.json").read_text(encoding="utf-8"))
        rows = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        ids = read_column(store / "utterances" / "id")
        offsets = read_column(store / parts[0] / "offsets")
        first = int(parts[3]) * rows
    except (OSError, ValueError, KeyError, IndexError):  # the index itself is damaged
        return ()
    return tuple(
        i
        for i, start, stop in zip(ids, offsets[:-1], offsets[1:], strict=True)
        if start < first + rows and stop > first and stop > start
    )
