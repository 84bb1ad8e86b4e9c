"""Find and delete unused stores, and temporary files of killed pulls, in a mirror."""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cache.store.checksums import CHECKSUMS
from cache.store.disk import files_below, newest, remove_tree
from cache.store.metadata import segments_of
from cache.store.publish import is_published, published_in
from cache.store.recipe import NAMES_ONLY, STORE_NAME, Recipe
from cache.store.store_source import StoreSource
from cache.store.temp_paths import TempPath, recognise
from manifests.printing import get_logger

log = get_logger(__name__)

_DAY_S = 86400.0
_LEFT_BY_PULLS = {
    TempPath.PARTIAL,
    TempPath.UNLOCKED_PARTIAL,
    TempPath.PULL_LOCK,
    TempPath.FILE,
    TempPath.REPLACED,
    TempPath.DELETED,
}
"""What killed pulls, repairs and deletions leave."""


@dataclass(frozen=True)
class Garbage:
    """Something in the mirror that can be deleted.

    Attributes:
        path: the file or folder.
        reason: why it can be deleted.
        bytes: its size.
    """

    path: Path
    reason: str
    bytes: int


def find_garbage(
    folder: Path,
    older_than_days: float | None = None,
    larger_than: int | None = None,
    superseded: bool = False,
) -> list[Garbage]:
    """Find what can be deleted from a mirror.

    Files we did not create, and anything behind a symlink (to a share, for instance), are ignored.

    Args:
        folder: the mirror.
        older_than_days: also find the stores that were not used for that long.
        larger_than: also find the stores unused for longest, until the size of the others is at
            most this number of bytes.
        superseded: also find the stores whose features are all in a newer one.

    Returns:
        Temporary files not written to for a day, then the stores.
    """
    now = time.time()
    found: list[Garbage] = []
    stores: list[tuple[float, Garbage]] = []
    for dataset in sorted(path for path in folder.glob("*/") if not path.is_symlink()):
        published = {*published_in(dataset)}  # restores one whose replacement was interrupted
        newer = superseded_in(published) if superseded else {}
        for path in sorted(dataset.glob("*")):  # none without permission to list them
            if path in published and re.fullmatch(STORE_NAME, path.name):
                if path.is_symlink():
                    continue
                if path in newer:
                    reason = f"superseded by {newer[path].name}"
                    found.append(Garbage(path, reason, _size(path)))
                    continue
                days = (now - path.stat().st_mtime) / _DAY_S
                stores.append((days, Garbage(path, f"unused for {days:.0f} days", _size(path))))
            elif _is_left_over(path):
                days = (now - newest(path)) / _DAY_S
                if days > 1:
                    found.append(Garbage(path, f"left over for {days:.0f} days", _size(path)))
    kept: list[Garbage] = []
    for days, store in sorted(stores, key=lambda pair: -pair[0]):
        old = older_than_days is not None and days > older_than_days
        (found if old else kept).append(store)
    total = sum(store.bytes for store in kept)
    for store in kept:
        if larger_than is None or total <= larger_than:
            break
        found.append(Garbage(store.path, "over the size, longest unused", store.bytes))
        total -= store.bytes
    return found


def superseded_in(stores: Collection[Path]) -> dict[Path, Path]:
    """Find the stores whose features are all in a newer store with the same encoders.

    One of format version 1 is superseded by the one that it was upgraded to.

    Args:
        stores: the published stores of a dataset.

    Returns:
        The superseded stores, each with the store that has its features.
    """
    keys: dict[Path, frozenset[Any]] = {}
    for store in stores:
        try:
            keys[store] = _keys(StoreSource(store))
        except (OSError, ValueError) as error:
            log.warning("skipping a store: %s", error)
    # A store is as old as its last file: using it changes the time of the folder only.
    newest_first = sorted(keys, key=lambda store: (store / CHECKSUMS).stat().st_mtime, reverse=True)
    intact = cache(_is_intact)
    found: dict[Path, Path] = {}
    for number, store in enumerate(newest_first):
        for newer in newest_first[:number]:
            if newer not in found and keys[store] and keys[store] <= keys[newer] and intact(newer):
                found[store] = newer
                break
    return found


def _keys(source: StoreSource) -> frozenset[Any]:
    """What the features of a store were extracted from and how; equal keys are equal features."""
    recipe = Recipe.of_store(source.attributes)
    encoders, segments = recipe.features_digest, segments_of(source.attributes)
    if recipe.version == NAMES_ONLY:
        return frozenset({(encoders, segments)})
    good = (record for record in source.records if record.status != "failed")
    keys = {(encoders, r.source_sha256 or r.id, r.cut) for r in good}
    return frozenset(keys | {(encoders, segments)} if source.attributes.get("asserted") else keys)


def _is_intact(store: Path) -> bool:
    """Whether all files of a store match their checksums: else no older store is deleted."""
    source = StoreSource(store)
    rows = range(len(source.records))
    good = not source.problem() and len(source.intact(rows)) == len(rows)
    if not good:
        log.warning("%s is damaged; run: python -m cache verify %s", store, store)
    return good


def delete_garbage(garbage: Garbage) -> None:
    """Delete it; it is renamed first, so that no reader sees half a store."""
    gone = TempPath.DELETED.next_to(garbage.path)
    garbage.path.rename(gone)
    remove_tree(gone) if gone.is_dir() else gone.unlink()


def _is_left_over(path: Path) -> bool:
    """Whether this is a temporary path; a replaced store is one only if its new store exists."""
    found = recognise(path.name)
    if found is None or found[0] not in _LEFT_BY_PULLS:
        return False
    return found[0] is not TempPath.REPLACED or is_published(path.with_name(found[1]))


def _size(path: Path) -> int:
    files = files_below(path) if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)
