"""Stores of shares on this machine's own disk: pulled once, read by every run.

The folder is ``$SEMANTICMAC_CACHE``, or ``semanticmac`` in the user's cache folder. A store lies
there as ``<dataset>/<encoder>-<sampling>-<digest12>.zarr``: under the digest of what made it, not
of where it came from. The folder's time says when it was last asked for.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.remote_store import resolve_one
from cache.share.transfer import Progress
from cache.share.verify import repair
from cache.store.assemble import CHECKSUMS
from cache.store.checksums import Checksums
from cache.store.disk import files_below, newest, remove_tree
from cache.store.publish import is_published, published_in
from cache.store.recipe import STORE_NAME

log = logging.getLogger(__name__)

FOLDER = "SEMANTICMAC_CACHE"
_DAY_S = 86400.0
_REMAINS = re.compile(
    rf"(?P<unfinished>{STORE_NAME})\.partial"
    rf"|\.(?P<hidden>{STORE_NAME})"
    r"\.(?P<what>lock|aside|[0-9a-f]{32}(\.partial)?|gone-[0-9a-f]{32})"
)
"""What pulls, repairs and deletions leave when they are killed, and nobody else makes."""


def mirror_folder() -> Path:
    """Where mirrored stores lie."""
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER]).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "semanticmac"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semanticmac"


def mirror(url: str, folder: Path | None = None, on_bytes: Progress | None = None) -> Path:
    """The local copy of a shared store, pulled if it is not there yet.

    If it is there, only the share's ``checksums.json`` is looked at; if the share is out of reach,
    what is there is used. Of several processes at once one pulls and the others wait.

    Args:
        url: ``LOCATION/DATASET/NAME.zarr``, ``LOCATION/DIGEST``, or a share with one store.
        folder: where the mirror lies, :func:`mirror_folder` by default.
        on_bytes: told of the progress.

    Returns:
        A published store on this machine.

    Raises:
        ValueError: no such store, or several.
        ShareError: the share is out of reach and the store is not here, or it is damaged there.
    """
    folder = folder or mirror_folder()
    try:
        source = resolve_one(url)
        checksums = source.checksums()
        if checksums is None:
            raise ShareError(f"{source}: there is no published store")
    except ShareError as error:
        store = _here(url, folder)
        if store is None or _damaged(store):
            raise
        log.warning("%s; using the copy of %s", error, store)
        return _used(store)
    store = folder / source.dataset / source.name
    if is_published(store) and (store / CHECKSUMS).read_bytes() != checksums.raw:
        log.warning("%s has other content now; replacing the copy in %s", source, store)
    elif is_published(store) and _damaged(store):
        log.warning("%s is damaged; repairing it from %s", store, source)
        repair(store, str(source))
    store, copied = pull(source, folder, replace=True, on_bytes=on_bytes)
    log.info("%s: %s", source, f"pulled to {store}" if copied else f"using the copy {store}")
    return _used(store)


@dataclass(frozen=True)
class Garbage:
    """Something in the mirror that may go: where, why, and how large it is in bytes."""

    path: Path
    reason: str
    bytes: int


def garbage(
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


def delete(garbage: Garbage) -> None:
    """Delete a store or remains; a store first loses its name, so that nobody sees half of it."""
    match = _REMAINS.fullmatch(garbage.path.name)
    store = (match["unfinished"] or match["hidden"]) if match else garbage.path.name
    gone = garbage.path.with_name(f".{store}.gone-{uuid.uuid4().hex}")
    garbage.path.rename(gone)
    remove_tree(gone) if gone.is_dir() else gone.unlink()


def _is_left_over(path: Path) -> bool:
    """Whether this is ours and can go; an old store put aside only while the new one stands."""
    match = _REMAINS.fullmatch(path.name)
    if match is None:
        return False
    return match["what"] != "aside" or is_published(path.with_name(match["hidden"]))


def _here(url: str, folder: Path) -> Path | None:
    """The mirrored store that a location names, as far as one can tell without asking there."""
    where = Location.parse(url)
    if where.name.endswith(".zarr"):
        store = folder / where.parent.name / where.name
        return store if is_published(store) else None
    stores = [p for p in folder.glob(f"*/*-{where.name[:12]}.zarr") if is_published(p)]
    return stores[0] if len(stores) == 1 else None


def _damaged(store: Path) -> bool:
    """Whether a file is missing or short; the bytes were compared when they came."""
    try:
        files = Checksums.of(store).files
    except ValueError:
        return True
    for name, expected in files.items():
        path = store / name
        if not path.is_file() or path.stat().st_size != expected.size:
            return True
    return False


def _used(store: Path) -> Path:
    with suppress(OSError):  # somebody else's mirror: only its owner may say so
        os.utime(store)
    return store


def _size(path: Path) -> int:
    files = files_below(path) if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)
