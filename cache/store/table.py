"""A store's table and offsets, which together say whose features are where.

Their bytes may be as published and yet contradict each other or the store's attributes: what reads
them here refuses that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.store.chunks import read_column
from cache.store.metadata import COLUMNS
from cache.store.parts import STATUSES


def table_column(store: Path, name: str, counts: Mapping[str, int]) -> np.ndarray:
    """A column of the ``utterances`` table, ``[N]``.

    Args:
        store: a store.
        name: of the column.
        counts: from the store's attributes.

    Raises:
        ValueError: it is damaged, has another length, names one id twice or an unknown status.
    """
    column = read_column(store / "utterances" / name)
    good = len(column) == counts["utterances"]
    if name == "id":
        good = good and len(set(column.tolist())) == len(column)
    if name == "status":
        good = good and set(column.tolist()) <= set(STATUSES)
    check(good, store / "utterances" / name)
    return column


def offsets_of(store: Path, modality: str, counts: Mapping[str, int]) -> np.ndarray:
    """``[N + 1]`` int64: utterance ``i`` is ``values[offsets[i]:offsets[i + 1]]``.

    Args:
        store: a store.
        modality: one that it holds.
        counts: from the store's attributes.

    Raises:
        ValueError: they are damaged, of another number, or do not rise from 0 to the last row.
    """
    offsets = read_column(store / modality / "offsets")
    good = offsets.dtype == np.int64 and len(offsets) == counts["utterances"] + 1
    good = good and offsets[0] == 0 and bool((offsets[1:] >= offsets[:-1]).all())
    good = good and offsets[-1] == counts[f"{modality}_frames"]
    check(good, store / modality / "offsets")
    return offsets


def check_index(store: Path, attributes: Mapping[str, Any]) -> None:
    """Refuse a store whose table and offsets contradict each other or its attributes.

    Raises:
        ValueError: they do, or are damaged.
    """
    for name in COLUMNS:
        table_column(store, name, attributes["counts"])
    for modality in attributes["widths"]:
        offsets_of(store, modality, attributes["counts"])


def check(good: bool, array: Path) -> None:
    """ValueError of an array that is not what the rest of its store says of it."""
    if not good:
        raise ValueError(
            f"{array} contradicts the rest of the store: whatever its checksums say, no reader can "
            "trust it; extract it again, or pull another"
        )
