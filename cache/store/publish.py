"""Publish stores atomically: assemble in a staging folder, then rename or swap into place."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.store.assemble import assemble, bytes_of
from cache.store.checksums import CHECKSUMS
from cache.store.consistency import check_all_present
from cache.store.disk import is_stale, locked, os_error_message, remove_tree, sync
from cache.store.parts import Parts, Row, best_per_id
from cache.store.recipe import Recipe, check_portable
from cache.store.store_source import StoreSource
from cache.store.temp_paths import (
    TempPath,
    is_staged_here,
    new_staging,
    recognise,
    staging_folders,
    staging_lock,
)
from manifests.printing import get_logger, preview

log = get_logger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SWAP_S = 0.5
"""Time between the two renames of a replacement, after which it counts as interrupted."""


@dataclass(frozen=True)
class Finished:
    """The finished utterances that a store is assembled from.

    Attributes:
        parts: those that were extracted.
        carried: rows of other stores, by id; they are preferred to the parts.
        sources: SHA-256 of each utterance's file, by id; parts of other files are ignored. None if
            the files are unknown.
    """

    parts: Parts
    carried: Mapping[str, Row] = field(default_factory=dict)
    sources: Mapping[str, str] | None = None

    def rows(self) -> dict[str, Row]:
        """The place of each finished utterance, by id."""
        return {**best_per_id(self.parts.read(), self.sources), **self.carried}


def publish(
    store: Path,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    ids: Sequence[str],
    on_chunk: Callable[[int, int], None] | None = None,
    finished: Finished | None = None,
) -> Path:
    """Assemble finished utterances and rename the result into place.

    Args:
        store: path of the store to publish.
        recipe: the recipe of the features.
        widths: columns per modality.
        about: further root attributes (manifest digest, licence, creator, tool versions, ...).
        ids: every utterance that the store must hold.
        on_chunk: called with (chunks written, total chunks).
        finished: the utterances; by default the parts in ``<store>.parts``. The parts are removed
            at the end.

    Returns:
        ``store``. If another process has published it meanwhile, its store is kept and this one
        deleted: equal recipes give equal features.

    Raises:
        ValueError: an utterance is not finished, the disk is full, or the dataset or the store has
            a name that another system could not have.
    """
    check_portable(recipe.dataset, store.name)
    finished = finished or Finished(Parts(store))
    parts = finished.parts
    with locked(staging_lock(parts.folder)) as alone:  # others wait, then find the store
        if not is_published(store):
            remove_leftovers(parts.folder, alone)
            _publish(store, finished, recipe, widths, about, ids, on_chunk)
    parts.remove()  # after the lock: a network file system keeps the folder of an open file
    return store


def _publish(
    store: Path,
    finished: Finished,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    ids: Sequence[str],
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    staging = new_staging(finished.parts.folder)
    needed = 0
    try:
        found = finished.rows()
        missing = [i for i in ids if i not in found]
        if missing and is_published(store):
            return  # without locks, another process may publish and remove the parts we read
        if missing:
            raise ValueError(
                f"{store}: {len(missing)} utterances are missing from the parts: {preview(missing)}"
            )
        rows = [found[i] for i in sorted(ids)]
        needed = bytes_of(rows, widths, recipe.dtype)
        assemble(staging, recipe, widths, about, rows, on_chunk)
        check_all_present(staging)
        staging.rename(store)  # the system refuses if a store exists there already
        sync(store.parent)
    except OSError as error:
        if not is_published(store):
            raise ValueError(
                f"{store}: {os_error_message(error)} (assembling needs {needed / 1e6:.3f} MB in "
                "addition to the parts); finished blocks are kept: free some space and run again"
            ) from error
        log.info("%s was published by another run meanwhile; using it", store)
    finally:
        remove_tree(staging)


def republish(
    store: Path, recipe: Recipe, widths: Mapping[str, int], about: Mapping[str, Any], retried: Parts
) -> Path:
    """Replace a published store by one whose failed utterances are taken from parts.

    All other rows are copied byte for byte. A failed utterance without a new part is kept as it is.
    A reader sees the old store or the new one; files of the old one that are mapped stay valid.

    The lock and the new store are in the folder of the parts, so the next run removes what a killed
    run leaves.

    Args:
        store: the published store.
        recipe: the recipe of its features.
        widths: columns per modality of the parts.
        about: further root attributes, as for :func:`publish`.
        retried: the parts; they are removed at the end.

    Raises:
        ValueError: the disk is full, the store is damaged, or it has features that the parts lack.
            The store is unchanged.
    """
    staging = new_staging(retried.folder)
    needed = 0
    try:
        with locked(staging_lock(retried.folder)) as alone:
            remove_leftovers(retried.folder, alone)
            old = StoreSource(store)
            assert widths.items() <= old.widths.items()
            rows = _retried_rows(old, retried)
            needed = bytes_of(rows, old.widths, recipe.dtype)
            try:
                assemble(staging, recipe, old.widths, about, rows)
                check_all_present(staging)
                replace(store, staging)
            finally:
                remove_tree(staging)
    except OSError as error:
        raise ValueError(
            f"{store}: {os_error_message(error)} (assembling needs {needed / 1e6:.3f} MB in "
            "addition to it); the store is unchanged, retried utterances are kept: free some space "
            "and run again"
        ) from error
    retried.remove()
    return store


def _retried_rows(old: StoreSource, retried: Parts) -> list[Row]:
    """The rows of the new store: failed utterances from the parts if there, all others as stored.

    Raises:
        ValueError: a part lacks a modality of the store.
    """
    found = best_per_id(retried.read(), {r.id: r.source_sha256 for r in old.records})
    rows: list[Row] = []
    for index, record in enumerate(old.records):
        again = found.get(record.id) if record.status == "failed" else None
        if again is not None and not old.widths.keys() <= again.source.widths.keys():
            lost = ", ".join(old.widths.keys() - again.source.widths.keys())
            raise ValueError(
                f"{old.path} also has {lost} features, which {again.source.path} lacks: retrying "
                "would lose them; import the store again"
            )
        rows.append(again or Row(old, index, record))
    return rows


def remove_leftovers(parts: Path, alone: bool) -> None:
    """Remove the staging folders of killed runs from a folder of parts, and no others.

    Args:
        parts: the folder of the parts.
        alone: whether this process holds the lock. A network file system may hold a lock on one
            machine only, so the lock says that no other run of this machine is assembling; runs of
            other machines count as killed when their staging folder is stale.
    """
    with suppress(FileNotFoundError):  # without locks another run may remove the folder
        for staging in staging_folders(parts):
            if (alone and is_staged_here(staging)) or is_stale(staging):
                remove_tree(staging)


def is_published(store: Path) -> bool:
    """Whether there is a complete store at this path.

    A store that a killed :func:`replace` has left under its temporary name is renamed back first.
    """
    old, deadline = TempPath.REPLACED.next_to(store), time.monotonic() + _SWAP_S
    for _ in range(3):  # it may have moved from one path to the other between the two checks
        while not (store / CHECKSUMS).is_file() and (old / CHECKSUMS).is_file():
            if time.monotonic() < deadline:
                time.sleep(0.001)  # most likely it is being replaced at this moment
                continue
            with suppress(OSError):  # another process has renamed it back, or the new one is there
                old.rename(store)
                log.warning("%s was restored: its replacement had been interrupted", store)
            break
        if (store / CHECKSUMS).is_file():
            return True
    return False


def published_in(folder: Path) -> list[Path]:
    """The published stores directly in a folder, sorted; one that is being replaced is included.

    A store without permission to read it is skipped with a warning.
    """
    # Where folders cannot be swapped, a store has its temporary name between two renames. If it is
    # missing from the first listing, it is in the second or, replaced in between, in the third.
    listed = [*folder.glob("*.zarr")]
    for path in folder.glob(TempPath.REPLACED.name_for("*.zarr")):
        found = recognise(path.name)
        if found is not None and found[0] is TempPath.REPLACED:
            listed.append(path.with_name(found[1]))
    listed += folder.glob("*.zarr")
    published = []
    for store in sorted(set(listed)):
        try:
            published += [store] if is_published(store) else []
        except PermissionError as error:
            log.warning("skipping a store: %s", error)
    return published


def replace(store: Path, new: Path) -> None:
    """Put the folder ``new`` in the place of ``store`` and delete the old one.

    At any moment a reader finds one of the two through :func:`is_published`. If the process is
    killed between two renames, the next reader restores the old store; if it is killed later, the
    old one keeps its temporary name, and its disk space, until the store is replaced again.

    Raises:
        OSError: the store cannot be replaced; the old one is unchanged.
    """
    old = TempPath.REPLACED.next_to(store)
    remove_tree(old)  # left by a run that was killed after it had replaced the store
    if exchange(new, store):
        sync(store.parent)
        remove_tree(new)
        return
    while True:
        store.rename(old)
        try:
            new.rename(store)
            break
        except OSError:
            # A reader may have renamed the old store back in between: then try again.
            if not (store / CHECKSUMS).is_file():
                is_published(store)
                raise
    sync(store.parent)
    remove_tree(old)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
