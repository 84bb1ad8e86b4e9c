"""Find and delete unused stores, and temporary files of killed pulls, in a mirror."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from cache.store.disk import files_below, newest, remove_tree
from cache.store.publish import is_published, published_in
from cache.store.recipe import STORE_NAME
from cache.store.temp_paths import TempPath, recognise

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
    folder: Path, older_than_days: float | None = None, larger_than: int | None = None
) -> list[Garbage]:
    """Find what can be deleted from a mirror.

    Files we did not create, and anything behind a symlink (to a share, for instance), are ignored.

    Args:
        folder: the mirror.
        older_than_days: also find the stores that were not used for that long.
        larger_than: also find the stores unused for longest, until the size of the others is at
            most this number of bytes.

    Returns:
        Temporary files not written to for a day, then the stores.
    """
    now = time.time()
    found: list[Garbage] = []
    stores: list[tuple[float, Garbage]] = []
    for dataset in sorted(path for path in folder.glob("*/") if not path.is_symlink()):
        published = {*published_in(dataset)}  # restores one whose replacement was interrupted
        for path in sorted(dataset.glob("*")):  # none without permission to list them
            if path in published and re.fullmatch(STORE_NAME, path.name):
                if path.is_symlink():
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
