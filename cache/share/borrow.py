"""Use features of shared stores without decoding: whole stores by name, single rows by content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cache.share import catalog
from cache.share.location import Location, ShareError
from cache.share.pull import pull
from cache.share.remote_store import RemoteStore
from cache.share.transfer import download, open_remote_metadata
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.consistency import check_all_listed, check_index, check_named_by_recipe
from cache.store.disk import atomic_write
from cache.store.metadata import is_feature_file, read_attributes, segments_of
from cache.store.recipe import Recipe
from cache.store.store_source import StoreSource, Wanted
from cache.store.temp_paths import TempPath
from manifests.printing import get_logger

log = get_logger(__name__)


def pull_same_names(
    recipe: Recipe,
    segments: str,
    sizes: Mapping[str, int],
    shares: Sequence[str],
    stores: Path,
) -> str | None:
    """Pull a store with these encoders, ids, paths and cuts; nothing is hashed.

    Of several on a share, the one pushed last whose files have the sizes of the local ones is
    taken. A share that is unreachable or damaged is skipped with a warning.

    Args:
        recipe: the encoders.
        segments: digest of the segments by name.
        sizes: size in bytes of each local file, by utterance id; without those that are missing.
        shares: locations, searched in this order.
        stores: folder of stores; the store is written to ``<stores>/<dataset>/<name>``.

    Returns:
        The location of the store on its share; None if no share has such a store.

    Raises:
        ValueError: a location is invalid, or the store cannot be written.
    """

    def fitting(share: Location) -> Iterator[RemoteStore]:
        found = [
            entry
            for entry in _of_encoders(share, recipe)
            if entry.segments == segments and entry.dataset == recipe.dataset
        ]
        if len(found) > 1:
            log.warning(
                "%s has %d stores of these videos, by name; the newest one that fits is used",
                *(share, len(found)),
            )
        sources = (RemoteStore(share, entry.dataset, entry.name) for entry in found)
        return (source for source in sources if _fits(source, recipe, segments, sizes))

    return _pull_first(fitting, recipe, shares, stores)


def pull_named(recipe: Recipe, shares: Sequence[str], stores: Path) -> str | None:
    """Pull the store with exactly this recipe; arguments and errors as `pull_same_names`."""

    def named(share: Location) -> Iterator[RemoteStore]:
        source = RemoteStore(share, recipe.dataset, recipe.store_name)
        checksums = source.checksums()
        if checksums and source.attributes(checksums).get("digest") == recipe.digest:
            yield source

    return _pull_first(named, recipe, shares, stores)


def _pull_first(
    find: Callable[[Location], Iterator[RemoteStore]],
    recipe: Recipe,
    shares: Sequence[str],
    stores: Path,
) -> str | None:
    """Pull the first store that ``find`` yields for a share; return its location."""
    for location in shares:
        share = Location.parse(location)
        try:
            for source in find(share):
                log.info("%s already has these features; pulling them", share)
                pull(source, stores)
                return str(source)
        except ShareError as error:
            _warn(error, share, stores, recipe)
    return None


def borrow(
    recipe: Recipe,
    shares: Sequence[str],
    wanted: Sequence[Wanted],
    folder: Path,
) -> Iterator[StoreSource]:
    """Copy from the shares the files that hold wanted rows; yield one source per store.

    Args:
        recipe: the encoders.
        shares: locations, searched in this order; one that fails is skipped with a warning.
        wanted: the utterances; those found in a store are not searched in the next one.
        folder: for the copied files.
    """
    wanted = list(wanted)
    for location in shares:
        share = Location.parse(location)
        try:
            entries = _of_encoders(share, recipe)
        except ShareError as error:
            log.warning("skipping a share: %s", error)
            continue
        for entry in entries:
            if not wanted:
                return
            try:
                remote = RemoteStore(share, entry.dataset, entry.name)
                source, found = _borrow(remote, recipe, wanted, folder)
            except ValueError as error:
                log.warning("skipping a shared store: %s", error)
                continue
            wanted = [w for w in wanted if w.id not in found]
            if found:
                yield source


def _borrow(
    remote: RemoteStore, recipe: Recipe, wanted: Sequence[Wanted], folder: Path
) -> tuple[StoreSource, set[str]]:
    """Copy the files of a store that hold wanted rows; return it and the ids of these rows.

    Raises:
        ValueError: the store is damaged, or inconsistent.
    """
    checksums = remote.published_checksums()
    # Stores of two shares may have the same name and different contents.
    copy = folder / checksums.content / remote.path
    names = [name for name in checksums.files if not is_feature_file(name)]
    download(remote, checksums, names, copy)
    atomic_write(copy / CHECKSUMS, checksums.raw)
    _check(remote, copy, checksums, recipe)
    source = StoreSource(copy)
    found = source.rows_for(wanted, failed=False)
    needed = source.chunks([row.index for row in found.values()])
    download(remote, checksums, needed, copy)
    if found:
        log.info("%s has the features of %d utterances", remote, len(found))
    return source, set(found)


def _of_encoders(share: Location, recipe: Recipe) -> list[catalog.Entry]:
    """The stores of a share that have these encoders, the one pushed last first."""
    found = [e for e in catalog.entries(share) if e.features == recipe.features_digest]
    return sorted(found, key=lambda entry: entry.when)[::-1]  # of one second: as listed, reversed


def _fits(source: RemoteStore, recipe: Recipe, segments: str, sizes: Mapping[str, int]) -> bool:
    """Whether a store is of these segments, and its videos have these sizes, as far as given.

    One that is damaged or inconsistent is skipped with a warning.
    """
    try:
        checksums = source.published_checksums()
        with open_remote_metadata(source, checksums) as store:
            _check(source, store.path, checksums, recipe)
            if segments_of(store.attributes) != segments:
                raise ValueError(f"{source} has other segments than its catalogue lists")
            found = store.column("source_bytes")
            expected = np.array([sizes.get(i, n) for i, n in zip(store.ids, found, strict=True)])
            return bool((found == expected).all())
    except ValueError as error:
        log.warning("skipping a shared store: %s", error)
        return False


def _check(remote: RemoteStore, copy: Path, checksums: Checksums, recipe: Recipe) -> None:
    """Check the files of a shared store, without features: neither share nor catalogue is trusted.

    Raises:
        ValueError: they contradict each other, or are of other encoders.
    """
    try:
        attributes = read_attributes(copy)
        check_named_by_recipe(attributes, remote.dataset, remote.name)
        check_all_listed(copy, checksums.files)
        check_index(copy, attributes)
    except ValueError as error:
        raise ValueError(f"{remote} is not a valid store: {error}") from error
    if Recipe.of_store(attributes).features_digest != recipe.features_digest:
        raise ValueError(f"{remote} has other encoders than its catalogue lists")


def _warn(error: ShareError, share: Location, stores: Path, recipe: Recipe) -> None:
    log.warning("skipping a share: %s", error)
    for left in (stores / recipe.dataset).glob(TempPath.PARTIAL.name_for("*.zarr")):
        log.warning("files downloaded from it are kept in %s for the next pull", left)
