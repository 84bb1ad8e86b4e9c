"""A published store once more, with what had failed: the one case in which a store is replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cache.store.assemble import Row, assemble, bytes_of
from cache.store.checksums import check_complete
from cache.store.chunks import ChunkedRows, read_column
from cache.store.disk import locked, os_error_message, remove_tree
from cache.store.parts import Parts, Record, newest_per_id
from cache.store.publish import new_staging, remove_leftovers, replace
from cache.store.recipe import Recipe


def republish(
    store: Path, recipe: Recipe, widths: Mapping[str, int], about: Mapping[str, Any], retried: Parts
) -> Path:
    """Replace a published store by one whose failed utterances are taken from parts.

    All other rows are carried over byte for byte. An utterance that failed and is in no part stays
    as it is. A reader sees the old store or the new one; whoever has the old one mapped keeps it.

    Everything but the store itself lies in the folder of the parts, the lock too: of a run that was
    killed nothing stays in anybody's way, and the next one clears it away.

    Args:
        store: the published store.
        recipe: what its features were made from.
        widths: columns per modality of the parts.
        about: further root attributes, as for :func:`cache.publish`.
        retried: the parts; they are removed in the end.

    Raises:
        ValueError: the disk is full, the store is damaged, or it has features that the parts lack.
            It stands as before.
    """
    staging = new_staging(retried.folder)
    needed = 0
    try:
        with locked(retried.folder / "assembling.lock") as alone:
            remove_leftovers(retried.folder, alone)
            old = Published(store)
            assert widths.items() <= old.widths.items()
            rows = _rows(old, retried)
            needed = bytes_of(rows, old.widths, recipe.dtype)
            try:
                assemble(staging, recipe, old.widths, about, rows)
                check_complete(staging)
                replace(store, staging)
            finally:
                remove_tree(staging)
    except OSError as error:
        raise ValueError(
            f"{store}: {os_error_message(error)} (assembling needs {needed / 1e6:.3f} MB beside "
            "it); the store is as it was, what was retried is kept; make room and run again"
        ) from error
    retried.remove()
    return store


@dataclass(frozen=True)
class Published:
    """A published store, seen as one large part."""

    path: Path

    @cached_property
    def widths(self) -> dict[str, int]:
        """Columns per modality."""
        root = json.loads((self.path / "zarr.json").read_text(encoding="utf-8"))
        return dict(root["attributes"]["widths"])

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """What became of each utterance, in the order of the rows."""
        names = ("id", "status", "error", "duration")
        columns = {name: read_column(self.path / "utterances" / name).tolist() for name in names}
        for modality in self.widths:
            offsets = read_column(self.path / modality / "offsets")
            columns[f"{modality}_frames"] = np.diff(offsets).tolist()
        rows = zip(*columns.values(), strict=True)
        return tuple(Record(**dict(zip(columns, row, strict=True))) for row in rows)

    def values(self, modality: str) -> np.ndarray:
        """All rows of one modality, ``[sum T, d]``, mapped where that is possible."""
        array = ChunkedRows.open(self.path / modality / "values")
        mapped = array.map()
        return array.read(np.array([0]), np.array(array.shape[:1])) if mapped is None else mapped


def _rows(old: Published, retried: Parts) -> list[Row]:
    """Each utterance of the store: from the parts if it failed and is there, else as it was."""
    found = newest_per_id(retried.read())
    rows: list[Row] = []
    for index, record in enumerate(old.records):
        again = found.get(record.id) if record.status == "failed" else None
        if again is not None and not old.widths.keys() <= again[0].header.keys():
            lost = ", ".join(old.widths.keys() - again[0].header.keys())
            raise ValueError(
                f"{old.path} also has {lost} features, which {again[0].path} lacks: retrying would "
                "lose them; import the store again"
            )
        rows.append(again or (old, index))
    return rows
