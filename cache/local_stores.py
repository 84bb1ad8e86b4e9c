"""Find the store of a dataset in a folder of stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache.reader import FeatureStore
from cache.store.metadata import NewerFormatError, columns_of, segments_of
from cache.store.publish import published_in
from cache.store.recipe import digest_of_segments
from cache.store.table import read_table_column, sources_of
from manifests.printing import get_logger

log = get_logger(__name__)


def find(
    dataset: str,
    root: str | Path = "stores",
    manifest_digest: str | None = None,
    cuts: Sequence[tuple[Any, ...]] | None = None,
) -> Path:
    """Find the published store of a dataset below ``root``.

    Of several stores, those whose segments equal the manifest's are preferred, and among them the
    one extracted from exactly this manifest, labels included. A store with other segments is used
    only if it is the only choice, with a warning (without one if it was imported: its segments are
    unknown). A store of a newer format is skipped with a warning if there is another.

    Args:
        dataset: name of the dataset.
        root: the folder of the stores.
        manifest_digest: digest of the manifest's whole content.
        cuts: the manifest's segments, ``(id, video, start, end, crop)`` each; None to ignore them.

    Raises:
        ValueError: no such store exists, or more than one.
    """
    stores = published_in(Path(root, dataset))
    if not stores:
        raise ValueError(
            f"no published store of {dataset!r} in {Path(root, dataset)}; "
            f"run: python -m extract {dataset}"
        )
    made = _attributes_of_all(stores)
    stores = list(made)
    segments = None if cuts is None else digest_of_segments(cuts)
    if segments is not None:
        stores = [p for p in stores if segments_of(made[p]) == segments] or stores
    if len(stores) > 1 and manifest_digest is not None:
        stores = [p for p in stores if made[p].get("manifest_digest") == manifest_digest] or stores
    if len(stores) > 1 and segments is not None:  # of videos that were renamed since
        stores = [p for p in stores if _has_cuts(p, made[p], cuts)] or stores
    if len(stores) > 1:
        listed = "\n  ".join(str(path) for path in stores)
        raise ValueError(f"several stores of {dataset!r}; name one with cache=<path>:\n  {listed}")
    (store,) = stores
    known = segments_of(made[store])
    if segments not in (None, known) and known and not _has_cuts(store, made[store], cuts):
        log.warning(
            "%s was extracted from other utterances, times or crops than the manifest has now; "
            "to extract again: python -m extract %s",
            *(store, dataset),
        )
    return store


def _has_cuts(
    store: Path, attributes: Mapping[str, Any], cuts: Sequence[tuple[Any, ...]] | None
) -> bool:
    """Whether a store has exactly these ids with these times and crops, whatever their files."""
    names = columns_of(attributes)
    if cuts is None or "start" not in names:
        return False
    columns = {name: read_table_column(store, name, attributes["counts"]) for name in names}
    found = ((i, *cut) for i, _, *cut in sources_of(columns))
    return sorted(found, key=str) == sorted(((i, *cut) for i, _, *cut in cuts), key=str)


def _attributes_of_all(stores: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Read the root attributes of the stores that this release, and this user, can read.

    Raises:
        NewerFormatError: the first store has a newer format, and none can be read.
        PermissionError: the same, without permission to read the first.
    """
    made: dict[Path, dict[str, Any]] = {}
    unread: list[NewerFormatError | PermissionError] = []
    for path in stores:
        try:
            made[path] = FeatureStore.open(path).attributes
        except (NewerFormatError, PermissionError) as error:
            unread.append(error)
    if not made:
        raise unread[0]
    for reason in unread:
        log.warning("skipping a store: %s", reason)
    return made
