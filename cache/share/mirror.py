"""Stores of shares on this machine's own disk: pulled once, read by every run.

The folder is ``$SEMANTICMAC_CACHE``, or ``semanticmac`` in the user's cache folder. A store lies
there as ``<dataset>/<encoder>-<sampling>-<digest12>.zarr``: under the digest of what made it, not
of where it came from. The folder's time says when it was last asked for.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.remote_store import resolve_one
from cache.share.transfer import Progress
from cache.share.verify import repair
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.publish import is_published

log = logging.getLogger(__name__)

FOLDER = "SEMANTICMAC_CACHE"


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
