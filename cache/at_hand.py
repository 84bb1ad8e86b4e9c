"""Find the features that exist already: in local stores, then on shares.

A row of a store can be used again for any utterance with the same *key*: the same encoders, the
same content of the file and the same cut, whatever the utterance, file and dataset are called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from cache.store.consistency import check_index
from cache.store.metadata import segments_of
from cache.store.parts import Cut, Row
from cache.store.publish import is_published, published_in
from cache.store.recipe import NAMES_ONLY, Recipe
from cache.store.store_source import StoreSource, Wanted
from manifests.printing import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class AtHand:
    """What exists already of the features that are wanted.

    Attributes:
        rows: the place of each utterance's features, by id.
        before: SHA-256 of each utterance's file in the newest store of the dataset with these
            encoders, by id; empty if there is no such store.
        gone: ids of ``rows`` whose file is missing.
        borrowed: ids of ``rows`` that are copied from a share.
        asserted: whether some of the rows are from a store of which nothing proves that its
            features came from the files it names (`cache upgrade`).
    """

    rows: dict[str, Row]
    before: dict[str, str]
    gone: frozenset[str] = frozenset()
    borrowed: frozenset[str] = frozenset()
    asserted: bool = False


def find_at_hand(
    recipe: Recipe,
    wanted: Sequence[Wanted],
    stores: Path,
    shares: Sequence[str],
    borrow_to: Path,
    failed: bool = True,
) -> AtHand:
    """Find finished rows in the local stores below ``stores``, then on the shares.

    A row is used only if the chunk files that contain it match their checksums. A share's chunk
    files are copied to ``borrow_to``, only those that are needed.

    Args:
        recipe: the encoders.
        wanted: the utterances.
        stores: folder of the stores.
        shares: locations, searched in this order for what the local stores lack.
        borrow_to: folder for the copies of shared files.
        failed: whether rows of local stores that failed count.
    """
    rows: dict[str, Row] = {}
    before: dict[str, str] = {}
    asserted = False
    borrowed: set[str] = set()
    for source in _local(recipe, stores):
        own = source.path.parent.name == recipe.dataset
        # A failed row is kept only until a store has the features.
        open_ = [w for w in wanted if w.id not in rows or not _is_good(rows[w.id])]
        if not open_:
            break
        if not own:  # an id names another utterance there
            open_ = [w for w in open_ if w.source.sha256 or w.source.before]
        try:
            if not before and own:
                before = {record.id: record.source_sha256 for record in source.records}
            found = source.rows_for(open_, failed)
            found = {i: row for i, row in found.items() if i not in rows or _is_good(row)}
            found = _intact(source, found)
        except ValueError as error:  # or deleted at this moment
            log.warning("skipping a store: %s", error)
            continue
        asserted = asserted or bool(found and source.attributes.get("asserted"))
        rows |= found
    open_ = [w for w in wanted if w.id not in rows or not _is_good(rows[w.id])]
    open_ = [w for w in open_ if w.source.sha256]
    if open_ and shares:
        from cache.share.borrow import borrow  # local stores need no fsspec

        for source in borrow(recipe, shares, open_, borrow_to):
            found = source.rows_for([w for w in open_ if w.id not in borrowed], failed=False)
            asserted = asserted or bool(found and source.attributes.get("asserted"))
            borrowed |= found.keys()
            rows |= found
    gone = frozenset(w.id for w in wanted if w.id in rows and not w.source.sha256)
    return AtHand(rows, before, gone, frozenset(borrowed), asserted)


def _intact(source: StoreSource, rows: dict[str, Row]) -> dict[str, Row]:
    """Those of a store's rows whose features are intact, if its table is what its digest names."""
    if not rows:
        return {}
    check_index(source.path, source.attributes)
    intact = source.intact({row.index for row in rows.values()})
    found = {i: row for i, row in rows.items() if row.index in intact}
    if len(found) < len(rows):
        log.warning("%s is damaged; run: python -m cache verify %s", source.path, source.path)
    return found


def _is_good(row: Row) -> bool:
    return row.record.status != "failed"


def _local(recipe: Recipe, stores: Path) -> Iterator[StoreSource]:
    """The local stores of these encoders, of any dataset, newest first.

    Those of format version 1 do not name the contents that their rows came from.
    """
    prefix = recipe.name_with("").removesuffix(".zarr")
    found: list[tuple[int, Path, StoreSource]] = []
    for folder in sorted(path for path in stores.glob("*/") if path.is_dir()):
        for store in published_in(folder):
            if not store.name.startswith(prefix):
                continue
            try:
                source = StoreSource(store)
                own = Recipe.of_store(source.attributes)
            except (OSError, ValueError) as error:
                log.warning("skipping a store: %s", error)
                continue
            if own.version != NAMES_ONLY and own.features_digest == recipe.features_digest:
                found.append((store.stat().st_mtime_ns, store, source))
    for _, store, source in sorted(found, reverse=True, key=itemgetter(0, 1)):
        problem = source.problem()
        if problem:
            log.warning(
                "%s is damaged (%s), its features are not used; run: python -m cache verify %s",
                *(store, problem, store),
            )
        else:
            yield source


@dataclass(frozen=True)
class Named:
    """A store that was found by the names of its videos; their contents were not compared.

    Attributes:
        store: the published store.
        shared: the location that it was pulled from; None if it is a local one.
        names_only: whether the store has format version 1: it does not name the contents.
    """

    store: Path
    shared: str | None
    names_only: bool


def find_by_name(
    recipe: Recipe, segments: str, sizes: Mapping[str, int], stores: Path, shares: Sequence[str]
) -> Named | None:
    """Find a store with these encoders, ids, paths and cuts without hashing a video.

    A local store is found by name only if it has format version 1, since the contents that it was
    made from are unknown. A share's store is pulled if no local store has these names.

    Args:
        recipe: the encoders.
        segments: digest of the segments by name.
        sizes: size in bytes of each local file, by utterance id; without those that are missing.
        stores: folder of the stores.
        shares: locations, searched in this order.

    Raises:
        ValueError: a location is invalid, or a store cannot be written.
    """
    if any(segments_of(source.attributes) == segments for source in _local(recipe, stores)):
        return None
    version_1 = replace(recipe, version=NAMES_ONLY, utterances=segments)
    store = stores / recipe.dataset / version_1.store_name
    if is_published(store):
        return Named(store, None, True)
    if not shares:
        return None
    from cache.share.borrow import pull_named, pull_same_names  # local stores need no fsspec

    pulled = pull_same_names(recipe, segments, sizes, shares, stores)
    if pulled:
        return Named(stores / recipe.dataset / pulled.rpartition("/")[2], pulled, False)
    pulled = pull_named(version_1, shares, stores)
    return Named(store, pulled, True) if pulled else None


def guess_sources(recipe: Recipe, stores: Path) -> dict[tuple[str, Cut, int], str]:
    """SHA-256 of the files of local stores with these encoders, by id, cut and size in bytes."""
    found: dict[tuple[str, Cut, int], str] = {}
    for source in _local(recipe, stores):
        for record in source.records:
            key = record.id, record.cut, record.source_bytes
            found.setdefault(key, record.source_sha256)
    return found
