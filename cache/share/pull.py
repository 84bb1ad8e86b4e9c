"""Copy a store from a share to this machine.

Every file is compared with the store's ``checksums.json`` before it gets its name. An interrupted
pull resumes.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cache.share.location import ShareError
from cache.share.remote_store import RemoteStore
from cache.share.transfer import WORKERS, Progress, download
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.consistency import check_all_listed, check_all_present, check_named_by_recipe
from cache.store.disk import (
    atomic_write,
    files_below,
    is_stale,
    locked,
    make_tree_read_only,
    remove_tree,
    sync,
)
from cache.store.metadata import parse_attributes
from cache.store.publish import is_published, replace
from cache.store.temp_paths import TempPath, recognise
from manifests.printing import get_logger

log = get_logger(__name__)


def pull(
    source: RemoteStore,
    to: Path,
    *,
    replace: bool = False,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> tuple[Path, int]:
    """Copy a shared store to a temporary folder, then rename it to ``<to>/<dataset>/<name>``.

    Args:
        source: the shared store.
        to: folder of stores.
        replace: replace a store that has this name but different content.
        workers: files transferred at once.
        on_bytes: called with the progress.

    Returns:
        The pulled store, and the number of files copied: 0 if it was there already.

    Raises:
        ValueError: the name is taken by a store with different content, or by something else; or
            the disk is full.
        ShareError: the share is unreachable, or the store is missing there or damaged.
    """
    checksums = source.published_checksums()
    store = to / source.dataset / source.name
    if _has_content(store, checksums):
        return store, 0
    if is_published(store) and not replace:
        raise ValueError(
            f"{store} has the same recipe with different content; compare the two with python -m "
            "cache diff, or pull to another folder with --stores"
        )
    _check_target(store)
    try:
        with locked(TempPath.PULL_LOCK.next_to(store)) as alone:
            if not _has_content(store, checksums):
                return store, _assemble(source, checksums, store, alone, workers, on_bytes)
            log.info("%s was pulled by another process; using it", store)
            return store, 0
    except ShareError as error:
        now = source.checksums()
        if now is None or now.raw != checksums.raw:
            raise ShareError(
                f"{source} was replaced while it was being pulled; pull again"
            ) from error
        raise
    except OSError as error:
        if _has_content(store, checksums):  # on a file system without locks
            log.info("%s was pulled by another process; using it", store)
            return store, 0
        raise ValueError(
            f"{store}: {error}. Downloaded files are kept; run the pull again to resume."
        ) from error


def _assemble(
    source: RemoteStore,
    checksums: Checksums,
    store: Path,
    alone: bool,
    workers: int,
    on_bytes: Progress | None,
) -> int:
    """Pull into ``<store>.partial`` and rename it; a store with that name is replaced.

    Without a lock (not ``alone``) each pull uses its own folder: it takes over the partial folder
    of an interrupted pull and, if interrupted itself, leaves it to the next pull.
    """
    left = TempPath.PARTIAL.next_to(store)
    partial = left if alone else TempPath.UNLOCKED_PARTIAL.next_to(store)
    if not alone:
        with suppress(OSError):
            left.rename(partial)
    if partial.is_symlink():
        partial.unlink()  # else files would be written to, and deleted from, the link's target
    try:
        metadata = [name for name in checksums.files if name.rpartition("/")[2] == "zarr.json"]
        copied = download(source, checksums, metadata, partial, workers)
        _check_metadata(source, checksums, partial)
        copied += download(source, checksums, checksums.files, partial, workers, on_bytes)
        published = {*checksums.files, CHECKSUMS}
        for path in list(files_below(partial)):
            if path.relative_to(partial).as_posix() not in published:
                path.unlink()  # left by an interrupted pull of other content
        atomic_write(partial / CHECKSUMS, checksums.raw)
        make_tree_read_only(partial)
        check_all_present(partial)
        _check_target(store)
        replace(store, partial) if store.exists() else partial.rename(store)
    except BaseException:
        if _has_content(store, checksums):
            remove_tree(partial)  # another pull was faster
        elif not alone:
            with suppress(OSError):
                partial.rename(left)
            remove_tree(partial)  # another pull left its own partial folder
        raise
    sync(store.parent)
    for path in store.parent.iterdir():
        found = recognise(path.name)
        if found is None or found[1] != store.name or not path.name.startswith("."):
            continue  # the others were left by killed pulls, or are the replaced store
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif is_stale(path):  # else another pull may be using it
            remove_tree(path)
    return copied


def _check_metadata(source: RemoteStore, checksums: Checksums, folder: Path) -> None:
    """Check that a store is readable before its features are downloaded.

    Raises:
        ShareError: its recipe does not match its name, or a needed file is not listed.
    """
    root = folder / "zarr.json"
    try:
        attributes = parse_attributes(root.read_bytes(), f"{source}: zarr.json")
        check_named_by_recipe(attributes, source.dataset, source.name)
        check_all_listed(folder, checksums.files)
    except ValueError as error:
        raise ShareError(f"{source} is not a valid store: {error}") from error


def _check_target(store: Path) -> None:
    """Check that only a published store is replaced.

    Raises:
        ValueError: something else has the store's name.
    """
    if (store.exists() or store.is_symlink()) and not is_published(store):
        raise ValueError(
            f"{store} exists but is not a published store. Nothing was changed; move it away and "
            "pull again."
        )


def _has_content(store: Path, checksums: Checksums) -> bool:
    return is_published(store) and (store / CHECKSUMS).read_bytes() == checksums.raw
