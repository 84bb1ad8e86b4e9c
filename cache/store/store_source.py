"""StoreSource: a published store, or the needed files of one, as a source of rows for another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cache.store.checksums import Checksums, identity_of
from cache.store.chunks import ChunkedRows, read_column
from cache.store.metadata import CROP, columns_of, is_feature_file, read_attributes
from cache.store.parts import Cut, Record, Row
from cache.store.sources import Source
from cache.store.table import none_for_nan

_THREADS = 4


@dataclass(frozen=True)
class Wanted:
    """An utterance whose features are wanted.

    Attributes:
        id: the manifest's utterance id.
        cut: what is cut from the file.
        source: the content of the file; one without SHA-256 is missing.
    """

    id: str
    cut: Cut
    source: Source


@dataclass(frozen=True)
class StoreSource:
    """A store as a `cache.store.assemble.Source` of utterances.

    Attributes:
        path: the folder. Of the features' files, only those of the rows that are read must exist.
        identity: of the folder's checksums when this object was made.
    """

    path: Path
    identity: tuple[int, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", identity_of(self.path))

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """The root attributes."""
        return read_attributes(self.path)

    @property
    def widths(self) -> dict[str, int]:
        """Columns per modality."""
        return dict(self.attributes["widths"])

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The record of each utterance, in the order of the rows."""
        columns = {
            name: read_column(self.path / "utterances" / name).tolist()
            for name in columns_of(self.attributes)
        }
        for name in {"start", "end", *CROP} & columns.keys():
            columns[name] = none_for_nan(np.array(columns[name]))
        for modality, offsets in self._offsets.items():
            columns[f"{modality}_frames"] = np.diff(offsets).tolist()
        rows = zip(*columns.values(), strict=True)
        return tuple(Record(**dict(zip(columns, row, strict=True))) for row in rows)

    def read(self, modality: str, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read and concatenate the rows ``starts[i] .. starts[i] + lengths[i]`` for every ``i``.

        Raises:
            ValueError: the store is damaged, or was replaced since its index was read: its rows are
                elsewhere now.
        """
        values = self._arrays[modality].read(starts, lengths)
        if identity_of(self.path) != self.identity:
            raise ValueError(
                f"{self.path} was replaced or deleted by another process while its features were "
                "copied; run the command again"
            )
        return values

    def problem(self) -> str:
        """Compare all files except the features with their checksums; empty if they match."""
        try:
            checksums = Checksums.of(self.path)
        except ValueError as error:
            return str(error)
        names = (name for name in checksums.files if not is_feature_file(name))
        found = ((name, checksums.problem(self.path, name)) for name in names)
        return next((f"{name}: {problem}" for name, problem in found if problem), "")

    def chunks(self, rows: Sequence[int]) -> set[str]:
        """The files, relative to the store, that hold the features of utterances."""
        index = np.array(rows, np.int64)
        return {_chunk_file(m, n) for m in self.widths for n in self._numbers(m, index)}

    def intact(self, rows: Collection[int]) -> set[int]:
        """Those of the utterances whose features match their files' checksums."""
        index = np.array(sorted(rows), np.int64)
        checksums = Checksums.of(self.path)
        names = sorted(self.chunks(index.tolist()))
        with ThreadPoolExecutor(_THREADS) as pool:
            problems = pool.map(lambda name: checksums.problem(self.path, name), names)
            damaged = {name for name, problem in zip(names, problems, strict=True) if problem}
        good = np.ones(len(index), bool)
        for modality in self.widths:
            numbers = sorted(self._numbers(modality, index))
            bad = np.array([n for n in numbers if _chunk_file(modality, n) in damaged], np.int64)
            first, last = self._spans(modality, index)
            good &= np.searchsorted(bad, first) == np.searchsorted(bad, last)
        return set(index[good].tolist())

    def rows_for(self, wanted: Sequence[Wanted], failed: bool) -> dict[str, Row]:
        """The rows that can be used for utterances, by id: those with the same source and cut.

        If the utterance's file is missing, those with the source that was at its path; if that is
        unknown, the row with its id and cut.

        Args:
            wanted: the utterances.
            failed: whether to use rows that failed.
        """
        by_key: dict[tuple[str, Cut], int] = {}
        by_id: dict[str, int] = {}
        for index, record in enumerate(self.records):
            if record.source_sha256 and (failed or record.status != "failed"):
                by_key[record.source_sha256, record.cut] = index
            if record.status != "failed":
                by_id[record.id] = index
        rows: dict[str, Row] = {}
        for w in wanted:
            content = w.source.sha256 or w.source.before
            found = by_key.get((content, w.cut)) if content else by_id.get(w.id)
            if found is not None and self.records[found].cut == w.cut:
                record = self.records[found]
                named = record if record.id == w.id else replace(record, id=w.id)
                rows[w.id] = Row(self, found, named)
        return rows

    def _numbers(self, modality: str, index: np.ndarray) -> set[int]:
        """The chunks that hold the features of utterances."""
        first, last = self._spans(modality, index)
        edges = set(zip(first.tolist(), last.tolist(), strict=True))
        return {number for begin, stop in edges for number in range(begin, stop)}

    def _spans(self, modality: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First chunk of each utterance's rows and the one after the last; equal without rows."""
        begin, end = self._offsets[modality][index], self._offsets[modality][index + 1]
        step = self._arrays[modality].chunk_rows
        first = begin // step
        return first, np.where(end > begin, -(-end // step), first)

    @cached_property
    def _arrays(self) -> dict[str, ChunkedRows]:
        return {m: ChunkedRows.open(self.path / m / "values") for m in self.widths}

    @cached_property
    def _offsets(self) -> dict[str, np.ndarray]:
        return {m: read_column(self.path / m / "offsets") for m in self.widths}


def _chunk_file(modality: str, number: int) -> str:
    return f"{modality}/values/c/{number}/0"
