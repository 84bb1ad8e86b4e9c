"""A store of a share, brought here.

What is read there is compared with the store's ``checksums.json`` before it gets a name here. An
interrupted pull goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cache.share.location import Location, ShareError
from cache.share.remote_store import RemoteStore
from cache.share.transfer import WORKERS, Progress, fetch
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
from cache.store.recipe import Recipe
from cache.store.temp_paths import TempPath, recognise

log = logging.getLogger(__name__)


def pull(
    source: RemoteStore,
    to: Path,
    *,
    replace: bool = False,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> tuple[Path, int]:
    """Copy a store of a share to ``<to>/<dataset>/<name>``, assembled aside and renamed whole.

    Args:
        source: the store.
        to: folder of stores.
        replace: whether a store of this name with other content is replaced.
        workers: files in flight at once.
        on_bytes: told of the progress.

    Returns:
        The pulled store, and how many files were copied: 0 if it was there already.

    Raises:
        ValueError: a store of this name with other content is there, or something that is no store;
            or the disk is full.
        ShareError: the share is out of reach, holds no such store, or a damaged one.
    """
    checksums = source.checksums()
    if checksums is None:
        raise ShareError(f"{source}: there is no published store")
    store = to / source.dataset / source.name
    if _holds(store, checksums):
        return store, 0
    if is_published(store) and not replace:
        raise ValueError(
            f"{store} holds the same recipe with other content; python -m cache diff tells how far "
            "they lie apart; pull to another folder with --stores"
        )
    _check_target(store)
    try:
        with locked(TempPath.PULL_LOCK.next_to(store)) as alone:
            if not _holds(store, checksums):
                return store, _assemble(source, checksums, store, alone, workers, on_bytes)
            log.info("%s was pulled by another process meanwhile; using it", store)
            return store, 0
    except ShareError as error:
        now = source.checksums()
        if now is None or now.raw != checksums.raw:
            raise ShareError(
                f"{source} was replaced there while it was pulled; pull again"
            ) from error
        raise
    except OSError as error:
        if _holds(store, checksums):  # where locks hold nobody
            log.info("%s was pulled by another process meanwhile; using it", store)
            return store, 0
        raise ValueError(f"{store}: {error}; what came is kept, pull again") from error


def _assemble(
    source: RemoteStore,
    checksums: Checksums,
    store: Path,
    alone: bool,
    workers: int,
    on_bytes: Progress | None,
) -> int:
    """Pull into ``<store>.partial`` and rename it; a store of that name makes room.

    Not ``alone``, without a lock, each pull works in a folder of its own, which starts as what an
    interrupted one left and is left so to the next.
    """
    left = TempPath.PARTIAL.next_to(store)
    partial = left if alone else TempPath.UNLOCKED_PARTIAL.next_to(store)
    if not alone:
        with suppress(OSError):
            left.rename(partial)
    if partial.is_symlink():
        partial.unlink()  # what it leads to is somebody's, and would be written to and tidied up
    try:
        metadata = [name for name in checksums.files if name.rpartition("/")[2] == "zarr.json"]
        copied = fetch(source, checksums, metadata, partial, workers)
        _check_metadata(source, checksums, partial)
        copied += fetch(source, checksums, checksums.files, partial, workers, on_bytes)
        for path in list(files_below(partial)):
            if path.relative_to(partial).as_posix() not in (*checksums.files, CHECKSUMS):
                path.unlink()  # of an interrupted pull of something else
        atomic_write(partial / CHECKSUMS, checksums.raw)
        make_tree_read_only(partial)
        check_all_present(partial)
        _check_target(store)
        replace(store, partial) if store.exists() else partial.rename(store)
    except BaseException:
        if _holds(store, checksums):
            remove_tree(partial)  # another pull was faster
        elif not alone:
            with suppress(OSError):
                partial.rename(left)
            remove_tree(partial)  # another pull left more, or the same
        raise
    sync(store.parent)
    for path in store.parent.iterdir():
        found = recognise(path.name)
        if found is None or found[1] != store.name or not path.name.startswith("."):
            continue  # what follows is of killed pulls, or the store replaced
        if not path.is_dir():
            path.unlink(missing_ok=True)
        elif is_stale(path):  # else it may be another's pull
            remove_tree(path)
    return copied


def _check_metadata(source: RemoteStore, checksums: Checksums, folder: Path) -> None:
    """Check that a store is readable before its features are fetched.

    Raises:
        ShareError: it is not what its place says, or not all of it is listed.
    """
    root = folder / "zarr.json"
    try:
        attributes = parse_attributes(root.read_bytes(), f"{source}: zarr.json")
        check_named_by_recipe(attributes, source.dataset, source.name)
        check_all_listed(folder, checksums.files)
    except ValueError as error:
        raise ShareError(f"{source} is not a valid store: {error}") from error


def _check_target(store: Path) -> None:
    """Only a published store is ever replaced.

    Raises:
        ValueError: something else has the store's name.
    """
    if (store.exists() or store.is_symlink()) and not is_published(store):
        raise ValueError(
            f"{store} is there and is no published store; nothing of it is touched: look what it "
            "is, and move it away"
        )


def pull_recipe(recipe: Recipe, shares: Sequence[str], root: Path) -> str | None:
    """Pull the store of a recipe from the first share that has it, instead of extracting it.

    A share that is out of reach or damaged is passed over with a warning.

    Returns:
        Where the store was, None if no share has it. It is now in ``<root>/<dataset>/<name>``.

    Raises:
        ValueError: a location is unusable, or the store cannot be written.
    """
    for source in [
        RemoteStore(Location.parse(s), recipe.dataset, recipe.store_name) for s in shares
    ]:
        try:
            checksums = source.checksums()
            if checksums is None or source.attributes(checksums).get("digest") != recipe.digest:
                continue
            log.info("%s has these features already; pulling them", source.share)
            pull(source, root)
            return str(source)
        except ShareError as error:
            log.warning("passing over a share: %s", error)
            left = TempPath.PARTIAL.next_to(root / source.path)
            if left.exists():
                log.warning("what came of it is kept in %s, for the next pull", left)
    return None


def _holds(store: Path, checksums: Checksums) -> bool:
    return is_published(store) and (store / CHECKSUMS).read_bytes() == checksums.raw
