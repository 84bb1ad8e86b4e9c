"""A shared store's table, looked at without its features."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.reader import FeatureStore
from cache.share.remote_store import RemoteStore
from cache.share.transfer import fetch
from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.recipe import STORABLE


@contextmanager
def open_remote_metadata(source: RemoteStore, checksums: Checksums) -> Iterator[FeatureStore]:
    """A store of a share for looking at its table: all but the features is fetched and checked.

    Raises:
        ShareError: a file is not as published.
    """
    features = tuple(f"{modality}/values/c/" for modality in STORABLE)
    names = [name for name in checksums.files if not name.startswith(features)]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, source.name)
        fetch(source, checksums, names, index)
        (index / CHECKSUMS).write_bytes(checksums.raw)
        yield FeatureStore.open(index)
