"""Read and validate the utterance table and the row offsets.

Their bytes may match the checksums and still contradict each other or the store's attributes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.store.chunks import read_column
from cache.store.metadata import CROP, STATUSES
from cache.store.recipe import digest_of_sources


def read_table_column(store: Path, name: str, counts: Mapping[str, int]) -> np.ndarray:
    """Read a column of the ``utterances`` table, ``[N]``.

    Args:
        store: path of a store.
        name: name of the column.
        counts: from the store's attributes.

    Raises:
        ValueError: it is damaged, has another length, a duplicate id or an unknown status.
    """
    column = read_column(store / "utterances" / name)
    good = len(column) == counts["utterances"]
    if name == "id":
        good = good and _are_unique(column.tolist())
    if name == "status":
        good = good and set(column.tolist()) <= set(STATUSES)
    check(good, store / "utterances" / name)
    return column


def _are_unique(ids: list[str]) -> bool:
    """Whether all ids differ; those of a published store are sorted, which needs no set of them."""
    rising = all(map(operator.lt, ids, itertools.islice(ids, 1, None)))
    return rising or len(set(ids)) == len(ids)


def check_sources(store: Path, columns: Mapping[str, np.ndarray], utterances: str) -> None:
    """Check that the table has the sources that the store's digest names.

    A store whose rows name no source (an imported one) is not checked.

    Args:
        store: path of the store.
        columns: all columns of its table, ``[N]`` each.
        utterances: digest of the sources in the store's recipe.

    Raises:
        ValueError: it has others.
    """
    if columns["source_sha256"].any():
        own = digest_of_sources(sources_of(columns))
        check(own == utterances, store / "utterances" / "source_sha256")


def sources_of(columns: Mapping[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """The rows that :func:`digest_of_sources` takes, from the columns of a table."""
    numbers = (none_for_nan(columns[name]) for name in ("start", "end"))
    crops = zip(*(none_for_nan(columns[name]) for name in CROP), strict=True)
    boxes = (None if None in crop else crop for crop in crops)
    names = (columns[name].tolist() for name in ("id", "source_sha256"))
    return zip(*names, *numbers, boxes, strict=True)


def none_for_nan(numbers: np.ndarray) -> list[float | None]:
    """The numbers of a column, with None for NaN, which the table has for an absent value."""
    return [None if value != value else value for value in numbers.tolist()]  # NaN is not itself


def read_offsets(store: Path, modality: str, counts: Mapping[str, int]) -> np.ndarray:
    """Read ``[N + 1]`` int64: utterance ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    Args:
        store: path of a store.
        modality: a modality of the store.
        counts: from the store's attributes.

    Raises:
        ValueError: they are damaged, have another length, or do not rise from 0 to the last row.
    """
    offsets = read_column(store / modality / "offsets")
    good = offsets.dtype == np.int64 and len(offsets) == counts["utterances"] + 1
    good = good and offsets[0] == 0 and bool((offsets[1:] >= offsets[:-1]).all())
    good = good and offsets[-1] == counts[f"{modality}_frames"]
    check(good, store / modality / "offsets")
    return offsets


def check(good: bool, array: Path) -> None:
    """Raise a ValueError that names ``array`` unless ``good``."""
    if not good:
        raise ValueError(
            f"{array} is inconsistent with the rest of the store, whatever its checksums are; "
            "extract the dataset again or pull another copy"
        )
