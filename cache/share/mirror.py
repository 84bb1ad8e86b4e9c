"""Keep local copies of shared stores: pulled once, read by every run.

The mirror is ``$SEMANTICMAC_CACHE``, or ``semanticmac`` in the user's cache folder. A store is at
``<dataset>/<encoder>-<sampling>-<digest12>.zarr`` in it; the digest is the recipe's, so a store has
the same path whichever share it came from. The folder's modification time is its last use.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.remote_store import resolve_one
from cache.share.repair import repair
from cache.share.transfer import Progress
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.publish import is_published, published_in
from manifests.printing import get_logger

log = get_logger(__name__)

FOLDER = "SEMANTICMAC_CACHE"
_SET_FOLDER = f"Copies of shared stores are kept there; set {FOLDER} to a folder you may write."


def mirror_folder() -> Path:
    """Return the folder of the mirror.

    Raises:
        ValueError: the user has no home, and no folder is set.
    """
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER]).expanduser()
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "semanticmac"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semanticmac"
    except RuntimeError as error:  # a user without a home
        raise ValueError(f"{error} {_SET_FOLDER}") from error


def mirror(url: str, folder: Path | None = None, on_bytes: Progress | None = None) -> Path:
    """Return the local copy of a shared store; pull it if it is missing or outdated.

    If it exists, only ``checksums.json`` is read from the share; if the share is unreachable, the
    local copy is used. Of several concurrent processes one pulls and the others wait.

    Args:
        url: ``LOCATION/DATASET/NAME.zarr``, ``LOCATION/DIGEST``, or a share with one store.
        folder: the mirror; :func:`mirror_folder` by default.
        on_bytes: called with the progress.

    Returns:
        A published store on this machine.

    Raises:
        ValueError: no such store, or several; or the mirror cannot be written.
        ShareError: the share is unreachable and no local copy exists, or the shared store is
            damaged.
    """
    folder = folder or mirror_folder()
    try:
        source = resolve_one(url)
        checksums = source.published_checksums()
    except ShareError as error:
        store = _find_copy(url, folder)
        if store is None or _damaged(store):
            raise
        log.warning("%s; using the local copy %s", error, store)
        return _touch(store)
    store = folder / source.dataset / source.name
    if is_published(store) and (store / CHECKSUMS).read_bytes() != checksums.raw:
        log.warning("%s has changed; replacing the local copy %s", source, store)
    elif is_published(store) and _damaged(store):
        log.warning("%s is damaged; repairing it from %s", store, source)
        repair(store, str(source))
    try:
        store, copied = pull(source, folder, replace=True, on_bytes=on_bytes)
    except ValueError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise ValueError(f"{error} {_SET_FOLDER}") from error
    log.info("%s: %s", source, f"pulled to {store}" if copied else f"using the local copy {store}")
    return _touch(store)


def _find_copy(url: str, folder: Path) -> Path | None:
    """Find the local copy for a location without reading the share."""
    where = Location.parse(url)
    if where.name.endswith(".zarr"):
        store = folder / where.parent.name / where.name
        return store if is_published(store) else None
    ending = f"-{where.name[:12]}.zarr"
    datasets = (path for path in folder.glob("*/") if any(path.glob(f"*{ending}")))
    stores = [p for path in datasets for p in published_in(path) if p.name.endswith(ending)]
    return stores[0] if len(stores) == 1 else None


def _damaged(store: Path) -> bool:
    """Whether a file is missing or has another size; its bytes were checked by the pull."""
    try:
        files = Checksums.of(store).files
    except ValueError:
        return True
    for name, expected in files.items():
        path = store / name
        if not path.is_file() or path.stat().st_size != expected.size:
            return True
    return False


def _touch(store: Path) -> Path:
    """Record the use of a store in its folder's modification time."""
    with suppress(OSError):  # only the owner of a mirror may set times in it
        os.utime(store)
    return store
