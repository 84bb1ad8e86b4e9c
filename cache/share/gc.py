"""Find and delete what a mirror no longer needs: unused stores, remains of killed pulls."""

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
"""What a killed pull, repair or deletion leaves."""


@dataclass(frozen=True)
class Garbage:
    """Something in the mirror that may go: where, why, and how large it is in bytes."""

    path: Path
    reason: str
    bytes: int


def find_garbage(
    folder: Path, older_than_days: float | None = None, larger_than: int | None = None
) -> list[Garbage]:
    """What may be deleted from a mirror.

    Remains of pulls that nobody went on with for a day; stores that nobody asked for in
    ``older_than_days``; and, the longest unused first, as many as it takes to bring the rest under
    ``larger_than`` bytes. What is not ours by its name is none of our business, nor is what lies
    behind a link, as to a share.
    """
    now = time.time()
    found: list[Garbage] = []
    stores: list[tuple[float, Garbage]] = []
    for dataset in sorted(path for path in folder.glob("*/") if not path.is_symlink()):
        published = {*published_in(dataset)}  # what was left aside as the only copy is now back
        for path in sorted(dataset.iterdir()):
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
    """Delete a store or remains; a store first loses its name, so that nobody sees half of it."""
    gone = TempPath.DELETED.next_to(garbage.path)
    garbage.path.rename(gone)
    remove_tree(gone) if gone.is_dir() else gone.unlink()


def _is_left_over(path: Path) -> bool:
    """Whether this is ours and can go; an old store put aside only while the new one stands."""
    found = recognise(path.name)
    if found is None or found[0] not in _LEFT_BY_PULLS:
        return False
    return found[0] is not TempPath.REPLACED or is_published(path.with_name(found[1]))


def _size(path: Path) -> int:
    files = files_below(path) if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)
