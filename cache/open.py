"""Open a feature store by path or URL."""

from __future__ import annotations

from pathlib import Path

from cache.reader import FeatureStore


def open_store(path_or_url: str | Path) -> FeatureStore:
    """Open a published store.

    A store at a URL is first copied to the local mirror (or its copy there is checked) and then
    opened from it, see :func:`cache.share.mirror.mirror`.

    Args:
        path_or_url: the store's folder; or ``LOCATION/DATASET/NAME.zarr``, ``LOCATION/DIGEST`` or a
            share with one store, by URL.

    Raises:
        NewerFormatError: the store's format is newer than this reader.
        ShareError: the share is unreachable and the mirror has no copy, or the store is damaged.
        ValueError: it is not a published store, or its metadata is invalid.
    """
    if is_url(path_or_url):
        from cache.share.mirror import mirror  # a local store needs no fsspec

        path_or_url = mirror(str(path_or_url))
    return FeatureStore.open(path_or_url)


def is_url(path_or_url: str | Path) -> bool:
    """Whether this is a URL rather than a path."""
    return "://" in str(path_or_url)
