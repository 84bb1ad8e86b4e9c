"""Open a feature store by path, URL or digest."""

from __future__ import annotations

from pathlib import Path

from cache.reader import FeatureStore


def open_store(path_or_url: str | Path) -> FeatureStore:
    """Open a published store.

    A store on another machine is first copied to the local mirror (or its copy there is checked)
    and then opened from it, see :func:`cache.share.mirror.mirror`.

    Args:
        path_or_url: ``LOCATION/DATASET/NAME.zarr``, ``LOCATION/DIGEST`` or a share with one store,
            by path or URL.

    Raises:
        NewerFormatError: the store's format is newer than this reader.
        ShareError: the share is unreachable and the mirror has no copy, or the store is damaged.
        ValueError: it is not a published store, or its metadata is invalid.
    """
    from cache.share.location import Location
    from cache.share.mirror import mirror
    from cache.share.remote_store import local_store

    # The mirror finds its copy of a store also while the share is unreachable.
    elsewhere = Location.parse(path_or_url).folder is None
    return FeatureStore.open(mirror(str(path_or_url)) if elsewhere else local_store(path_or_url))
