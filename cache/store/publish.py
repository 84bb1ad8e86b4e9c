"""Which stores stand, and how one comes to stand: assembled aside, then renamed or swapped."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cache.store.assemble import CHECKSUMS, Row, assemble, bytes_of
from cache.store.checksums import check_complete
from cache.store.disk import is_stale, locked, os_error_message, remove_tree, sync
from cache.store.parts import Parts, newest_per_id
from cache.store.recipe import STORE_NAME, Recipe

log = logging.getLogger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SWAP_S = 0.5
"""How long a store may lie aside before its replacement counts as interrupted: two renames."""


def publish(
    store: Path,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    ids: Sequence[str],
    on_chunk: Callable[[int, int], None] | None = None,
) -> Path:
    """Assemble the parts of ``store`` and rename the whole into place.

    Args:
        store: where the store shall stand; its parts lie in ``<store>.parts``.
        recipe: what the features were made from.
        widths: columns per modality.
        about: further root attributes (manifest digest, licence, creator, tool versions, ...).
        ids: every utterance the store must hold.
        on_chunk: called with (chunks written, chunks in all).

    Returns:
        ``store``. If somebody else published it meanwhile, theirs stays and ours is dropped: equal
        recipes give equal features.

    Raises:
        ValueError: an utterance is in no part, or the disk is full.
    """
    parts = Parts(store)
    with locked(parts.folder / "assembling.lock") as alone:  # others wait, then find the store
        if not is_published(store):
            remove_leftovers(parts.folder, alone)
            _publish(store, parts, recipe, widths, about, ids, on_chunk)
    parts.remove()  # after the lock: a network file system keeps the folder of an open file
    return store


def _publish(
    store: Path,
    parts: Parts,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    ids: Sequence[str],
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    staging = new_staging(parts.folder)
    needed = 0
    try:
        found = newest_per_id(parts.read())
        missing = [i for i in ids if i not in found]
        if missing and is_published(store):
            return  # where nobody waits for locks, the parts may go while we read them
        if missing:
            raise ValueError(f"{store}: {len(missing)} utterances are in no part: {missing[:5]}")
        rows: list[Row] = [found[i] for i in sorted(ids)]
        needed = bytes_of(rows, widths, recipe.dtype)
        assemble(staging, recipe, widths, about, rows, on_chunk)
        check_complete(staging)
        staging.rename(store)  # refused by the system if a store stands there already
        sync(store.parent)
    except OSError as error:
        if not is_published(store):
            raise ValueError(
                f"{store}: {os_error_message(error)} (assembling needs {needed / 1e6:.3f} MB "
                "beside the parts); finished blocks are kept, make room and run again"
            ) from error
        log.info("%s was published by another run meanwhile; using it", store)
    finally:
        remove_tree(staging)


def new_staging(folder: Path) -> Path:
    """A path below the folder of the parts for a store to be assembled; it names this machine."""
    return folder / f"{_assembling_here()}{uuid.uuid4().hex}"


def remove_leftovers(folder: Path, alone: bool) -> None:
    """Remove what killed runs were assembling, and nothing that a living one is.

    A network file system may hold a lock on one machine only. So ``alone``, which says that we hold
    it, tells about the runs of this machine; those of others count as killed when they are stale.
    """
    with suppress(FileNotFoundError):  # without locks another run may remove the folder
        for staging in folder.glob("assembling-*"):
            if (alone and staging.name.startswith(_assembling_here())) or is_stale(staging):
                remove_tree(staging)


def _assembling_here() -> str:
    return f"assembling-{platform.node()}-"


def is_published(store: Path) -> bool:
    """Whether a whole store stands at this path.

    One that a killed :func:`replace` left aside is put back first.
    """
    aside, patience = _aside(store), time.monotonic() + _SWAP_S
    for _ in range(3):  # it may have gone from the one place to the other while we looked
        while not (store / CHECKSUMS).is_file() and (aside / CHECKSUMS).is_file():
            if time.monotonic() < patience:
                time.sleep(0.001)  # most likely it is being replaced just now
                continue
            with suppress(OSError):  # another process put it back, or the new one in its place
                aside.rename(store)
                log.warning("%s is back: its replacement had been interrupted", store)
            break
        if (store / CHECKSUMS).is_file():
            return True
    return False


def published_in(folder: Path) -> list[Path]:
    """The published stores that lie directly in a folder, sorted.

    One that is being replaced at this moment is among them.
    """
    # Where folders cannot be swapped, a store lies aside for the time between two renames. Whoever
    # misses it under its name finds it aside, or, if its replacement came in between, under its
    # name again.
    listed = [*folder.glob("*.zarr")]
    put_aside = map(_put_back_to, folder.glob(".*.zarr.aside"))
    listed += [store for store in put_aside if re.fullmatch(STORE_NAME, store.name)]
    listed += folder.glob("*.zarr")
    return [store for store in sorted(set(listed)) if is_published(store)]


def replace(store: Path, new: Path) -> None:
    """Put the folder ``new`` in the place of ``store`` and delete the old one.

    A reader finds one of them at any moment, through :func:`is_published`. If the process is killed
    between two renames, the next reader puts the old one back; if it is killed after them, the old
    one stays aside, and takes space, until the store is replaced once more.

    Raises:
        OSError: it cannot be done; the old one stands.
    """
    remove_tree(_aside(store))  # left by a run that was killed when it had replaced the store
    if _exchange(new, store):
        sync(store.parent)
        remove_tree(new)
        return
    while True:
        store.rename(_aside(store))
        try:
            new.rename(store)
            break
        except OSError:
            # A reader came in between the two lines and put the old store back: once more.
            if not (store / CHECKSUMS).is_file():
                is_published(store)
                raise
    sync(store.parent)
    remove_tree(_aside(store))


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _aside(store: Path) -> Path:
    return store.with_name(f".{store.name}.aside")


def _put_back_to(aside: Path) -> Path:
    return aside.with_name(aside.name.removeprefix(".").removesuffix(".aside"))
