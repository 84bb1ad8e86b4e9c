"""A shared store's table, looked at without its features."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.assemble import CHECKSUMS
from cache.checksums import Checksums
from cache.fetch import fetch
from cache.reader import FeatureCache
from cache.recipe import STORABLE
from cache.share import Shared


@contextmanager
def index_of(source: Shared, checksums: Checksums) -> Iterator[FeatureCache]:
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
        yield FeatureCache.open(index)
