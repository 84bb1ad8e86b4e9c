"""Stores of shares: named, looked up, pulled.

A store is on a share when its ``checksums.json`` is. Whatever is read there is compared with that
list before it gets a name here. An interrupted pull goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache import catalog
from cache.assemble import CHECKSUMS
from cache.checksums import Checksums, FileSum, stays_below
from cache.disk import locked, remove_tree, seal_tree, sync_folder, write_whole
from cache.location import Location, ShareError
from cache.recipe import Recipe
from cache.store import is_published, replace

log = logging.getLogger(__name__)

SHARES = "SEMANTICMAC_SHARES"
WORKERS = 8
"""Files in flight at once; each is held in memory, a chunk of about 8 MB."""

_TRIES = 3
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True)
class Shared:
    """A store on a share: ``<share>/<dataset>/<name>``."""

    share: Location
    dataset: str
    name: str

    @classmethod
    def parse(cls, text: str | Path) -> Shared:
        """A store by its own URL or path, ``LOCATION/DATASET/NAME.zarr``; nothing is looked up.

        Raises:
            ValueError: no store can be there.
        """
        where = Location.parse(text)
        dataset = where.parent.name
        if not where.name.endswith(".zarr") or not dataset or not stays_below(dataset):
            raise ValueError(f"{where} is no store; one is called LOCATION/DATASET/NAME.zarr")
        return cls(where.parent.parent, dataset, where.name)

    def __str__(self) -> str:
        return str(self.where)

    @property
    def path(self) -> str:
        """Where the store lies, relative to the share."""
        return f"{self.dataset}/{self.name}"

    @property
    def where(self) -> Location:
        """The store's own location."""
        return self.share / self.path

    def checksums(self) -> Checksums | None:
        """The list of the store's files; None if there is no published store.

        Raises:
            ShareError: the share is out of reach, or the list is damaged.
        """
        self.share.check()
        try:
            raw = self.where.read(CHECKSUMS)
        except FileNotFoundError:
            return None
        try:
            return Checksums.parse(raw, str(self.where / CHECKSUMS))
        except ValueError as error:
            raise ShareError(str(error)) from error

    def attributes(self, checksums: Checksums) -> dict[str, Any]:
        """The store's root attributes.

        Raises:
            ShareError: they are not as published.
        """
        data = self.read("zarr.json", checksums.files.get("zarr.json", FileSum(0, "")))
        attributes: dict[str, Any] = json.loads(data).get("attributes", {})
        return attributes

    def read(self, name: str, expected: FileSum) -> bytes:
        """A file of the store, compared with what was published; a stumbling link gets more tries.

        Raises:
            ShareError: the file is not there or not as published.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                data = self.where.read(name)
            except FileNotFoundError:
                raise ShareError(f"{self}: {name} is missing; push the store again") from None
            except ShareError:
                if attempt == _TRIES:
                    raise
            else:
                if expected.matches(data):
                    return data
            time.sleep(0.1 * attempt)
        raise ShareError(f"{self}: {name} is damaged: its SHA-256 is not the published one")


def pull(
    source: Shared,
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
        ValueError: a store of this name with other content is there, or the disk is full.
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
            "they lie apart; pull to another folder with --to"
        )
    try:
        with locked(store.with_name(f".{store.name}.lock")):
            if _holds(store, checksums):
                log.info("%s was pulled by another process meanwhile; using it", store)
                return store, 0
            return store, _assemble(source, checksums, store, workers, on_bytes)
    except OSError as error:
        raise ValueError(f"{store}: {error}; what came is kept, pull again") from error


def _assemble(
    source: Shared, checksums: Checksums, store: Path, workers: int, on_bytes: Progress | None
) -> int:
    """Pull into ``<store>.partial`` and rename it; a store of that name makes room."""
    partial = store.with_name(store.name + ".partial")
    copied = fetch(source, checksums, checksums.files, partial, workers, on_bytes)
    for path in [p for p in partial.rglob("*") if p.is_file()]:
        if path.relative_to(partial).as_posix() not in checksums.files:
            path.unlink()  # of an interrupted pull of something else
    write_whole(partial / CHECKSUMS, checksums.raw)
    seal_tree(partial)
    replace(store, partial) if store.exists() else partial.rename(store)
    sync_folder(store.parent)
    for path in store.parent.iterdir():
        if path.name.startswith(f".{store.name}."):  # of killed pulls, or the store replaced
            remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return copied


def fetch(
    source: Shared,
    checksums: Checksums,
    names: Iterable[str],
    folder: Path,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> int:
    """Bring files of a store into ``folder``, those that are not there or not as published.

    Returns:
        How many were copied.

    Raises:
        ShareError: a file is not as published on the share either; the good ones are kept.
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = [name for name in sorted(names) if checksums.problem(folder, name)]
    in_all = sum(checksums.files[name].size for name in needed)
    free = shutil.disk_usage(folder).free
    if in_all > free:
        raise OSError(f"{in_all / 1e9:.2f} GB are to come and {free / 1e9:.2f} GB are free")

    def bring(name: str) -> int:
        data = source.read(name, checksums.files[name])
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # It waits outside: a killed pull or repair leaves nothing in a store.
        aside = folder.with_name(f".{folder.name.removesuffix('.partial')}.{uuid.uuid4().hex}")
        write_whole(path, data, aside)
        return len(data)

    in_threads(bring, needed, workers, in_all, on_bytes)
    return len(needed)


def resolve(text: str) -> list[Shared]:
    """The stores that ``LOCATION``, ``LOCATION/DATASET/NAME.zarr`` or ``LOCATION/DIGEST`` name.

    Raises:
        ValueError: there is none.
        ShareError: the share is out of reach.
    """
    where = Location.parse(text)
    if where.name.endswith(".zarr"):
        return [Shared.parse(text)]
    digest = where.name if re.fullmatch("[0-9a-f]{12,64}", where.name) else ""
    if where.folder is not None and where.folder.is_dir():
        digest = ""  # a folder that happens to be called so
    share = where.parent if digest else where
    found = [e for e in catalog.entries(share) if e.digest.startswith(digest)]
    if not found:
        raise ValueError(f"{share} lists no store{f' with digest {digest}' if digest else ''}")
    return [Shared(share, entry.dataset, entry.name) for entry in found]


def one_of(text: str) -> Shared:
    """The one store that ``text`` names; see :func:`resolve`.

    Raises:
        ValueError: there is none or several; lists them.
    """
    found = resolve(text)
    if len(found) > 1:
        listed = "\n  ".join(str(shared) for shared in found)
        raise ValueError(f"{Location.parse(text)} holds several stores; name one:\n  {listed}")
    return found[0]


def configured_shares() -> list[str]:
    """The shares in the environment variable ``SEMANTICMAC_SHARES``, separated by commas."""
    return [text.strip() for text in os.environ.get(SHARES, "").split(",") if text.strip()]


def pull_recipe(recipe: Recipe, shares: Sequence[str], root: Path) -> str | None:
    """Pull the store of a recipe from the first share that has it, instead of extracting it.

    A share that is out of reach or damaged is passed over with a warning.

    Returns:
        Where the store was, None if no share has it. It is now in ``<root>/<dataset>/<name>``.

    Raises:
        ValueError: a location is unusable, or the store cannot be written.
    """
    for source in [Shared(Location.parse(s), recipe.dataset, recipe.store_name) for s in shares]:
        try:
            checksums = source.checksums()
            if checksums is None or source.attributes(checksums).get("digest") != recipe.digest:
                continue
            log.info("%s has these features already; pulling them", source.share)
            pull(source, root)
            return str(source)
        except ShareError as error:
            log.warning("passing over a share: %s", error)
            remove_tree(root / f"{source.path}.partial")
    return None


def _holds(store: Path, checksums: Checksums) -> bool:
    return is_published(store) and (store / CHECKSUMS).read_bytes() == checksums.raw


def in_threads(
    work: Callable[[str], int],
    names: Sequence[str],
    workers: int,
    in_all: int,
    on_bytes: Progress | None,
) -> None:
    """Do the work, which returns bytes, for every name.

    The first error ends it, once what is under way is done.
    """
    pool = ThreadPoolExecutor(workers)
    done = 0
    try:
        for future in as_completed([pool.submit(work, name) for name in names]):
            done += future.result()
            if on_bytes is not None:
                on_bytes(done, in_all)
    finally:
        pool.shutdown(cancel_futures=True)
