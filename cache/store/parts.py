"""Partial results of an extraction: one safetensors file per finished block of utterances.

A part is named after the SHA-256 of its bytes and written atomically: a file whose name matches its
bytes is complete. Parts of several runs, block sizes or machines may be in one folder: equal
utterances have equal values.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import save

from cache.store.chunks import row_numbers
from cache.store.disk import (
    atomic_write,
    os_error_message,
    remove_tree,
    retry_if_removed,
    sha256_of,
    sync,
)
from cache.store.temp_paths import TempPath
from manifests.printing import get_logger

log = get_logger(__name__)

Cut = tuple[float | None, float | None, tuple[float, float, float, float] | None]
"""Start and end in seconds, and the crop in fractions; None where a value is absent."""


@dataclass(frozen=True, slots=True)  # there may be millions
class Record:
    """The outcome of extracting one utterance.

    Attributes:
        id: the manifest's utterance id.
        status: ``ok``; ``no_audio`` or ``no_video`` when the file lacks that stream (its features
            are then empty); ``failed`` when nothing could be extracted.
        error: the reason, empty when ``ok``.
        duration: length of the utterance in seconds, 0 when ``failed``.
        audio_frames: rows in the audio features.
        vision_frames: rows in the vision features.
        text_frames: rows in the text features; 0 in a store without text.
        source_sha256: SHA-256 of the file; empty if it is missing or unknown.
        source_bytes: size of the file.
        start: begin in the file in seconds; None for the file's begin.
        end: end in seconds; None for the file's end.
        crop_x: with the next three, the part of the picture in fractions; None for all of it.
        crop_y: see ``crop_x``.
        crop_w: see ``crop_x``.
        crop_h: see ``crop_x``.
    """

    id: str
    status: str
    error: str = ""
    duration: float = 0.0
    audio_frames: int = 0
    vision_frames: int = 0
    text_frames: int = 0
    source_sha256: str = ""
    source_bytes: int = 0
    start: float | None = None
    end: float | None = None
    crop_x: float | None = None
    crop_y: float | None = None
    crop_w: float | None = None
    crop_h: float | None = None

    @property
    def cut(self) -> Cut:
        """What was cut from the file: start, end, crop."""
        x, y, w, h = self.crop_x, self.crop_y, self.crop_w, self.crop_h
        if x is None or y is None or w is None or h is None:
            return self.start, self.end, None
        return self.start, self.end, (x, y, w, h)

    def frames(self, modality: str) -> int:
        """Number of rows in one modality."""
        return int(getattr(self, f"{modality}_frames"))


def frames_of(records: Sequence[Record], modality: str) -> list[int]:
    """Number of rows in one modality, for each record."""
    return list(map(attrgetter(f"{modality}_frames"), records))


class Source(Protocol):
    """A source of finished utterances: a part, or a published store."""

    @property
    def path(self) -> Path:
        """Path of the source."""

    @property
    def records(self) -> tuple[Record, ...]:
        """The record of each utterance, in the order of the rows."""

    @property
    def widths(self) -> dict[str, int]:
        """Columns per modality."""

    def read(self, modality: str, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read and concatenate the rows ``starts[i] .. starts[i] + lengths[i]`` for every ``i``.

        No file may stay open: the number of open files is limited, that of sources is not.
        """


@dataclass(frozen=True, slots=True)
class Row:
    """The features of an utterance.

    Attributes:
        source: where they are.
        index: the utterance's index there.
        record: its record in the new store; its numbers of frames are those of the source.
    """

    source: Source
    index: int
    record: Record


@dataclass(frozen=True)
class Part:
    """One file of finished utterances: the records, and where in the file their rows are."""

    path: Path
    records: tuple[Record, ...]
    data_start: int
    header: dict[str, dict]

    @property
    def widths(self) -> dict[str, int]:
        """Columns per modality."""
        return {modality: entry["shape"][1] for modality, entry in self.header.items()}

    def values(self, modality: str) -> np.ndarray:
        """The part's rows of one modality, ``[sum T, d]``, mapped from the file."""
        entry = self.header[modality]
        shape = entry["shape"]
        with self.path.open("rb", buffering=0) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        dtype = {"F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        start = self.data_start + entry["data_offsets"][0]
        return np.frombuffer(mapped, dtype, shape[0] * shape[1], start).reshape(shape)

    def read(self, modality: str, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Read and concatenate the rows ``starts[i] .. starts[i] + lengths[i]`` for every ``i``."""
        return self.values(modality).take(row_numbers(starts, lengths), axis=0)


class Parts:
    """The folder ``<store>.parts``, which holds finished blocks until all utterances are done."""

    def __init__(self, store: Path) -> None:
        self.folder = TempPath.PARTS.next_to(store)

    def write(self, records: list[Record], features: dict[str, np.ndarray], dtype: str) -> Path:
        """Write a block of finished utterances.

        Args:
            records: one per utterance, in the order of the rows.
            features: the concatenated rows of the utterances per modality, float32 ``[sum T, d]``.
            dtype: the stored type.

        Raises:
            ValueError: a value is not finite or does not fit ``dtype``; names the utterance. Or the
                disk is full.
        """
        tensors = round_to_dtype(records, features, dtype)
        names = [field.name for field in fields(Record)]
        if "text" not in features:
            names.remove("text_frames")  # keeps the bytes of such parts as they were before text
        plain = [{name: getattr(record, name) for name in names} for record in records]
        data = save(tensors, {"records": json.dumps(plain)})
        path = self.folder / f"{hashlib.sha256(data).hexdigest()[:32]}.part"
        try:
            retry_if_removed(self.folder, partial(atomic_write, path, data))
        except OSError as error:
            raise ValueError(
                f"{path}: {os_error_message(error)} ({len(data) / 1e6:.3f} MB to write); "
                "finished blocks are kept: free some space and run again"
            ) from error
        return path

    def read(self) -> list[Part]:
        """Read all parts, sorted by name; a damaged one is deleted with a warning."""
        parts = []
        for path in sorted(self.folder.glob("*.part")):
            try:
                if sha256_of(path)[:32] != path.stem:
                    log.warning("%s is damaged; its utterances will be extracted again", path)
                    path.unlink(missing_ok=True)
                    continue
                parts.append(_open(path))
            except FileNotFoundError:
                continue  # another run published the store and removed the part
        return parts

    def remove(self) -> None:
        """Delete the folder, after its content was published."""
        remove_tree(self.folder)
        if self.folder.parent.exists():
            sync(self.folder.parent)


def round_to_dtype(
    records: list[Record], features: dict[str, np.ndarray], dtype: str
) -> dict[str, np.ndarray]:
    """Round features to the stored ``dtype``; arguments and errors as for `Parts.write`."""
    stored = {}
    for modality, rows in features.items():
        values = np.ascontiguousarray(rows)
        assert len(values) == sum(record.frames(modality) for record in records)
        _check_range(records, modality, values, dtype)
        stored[modality] = values.astype(dtype)
    return stored


def best_per_id(parts: Iterable[Part], sources: Mapping[str, str] | None = None) -> dict[str, Row]:
    """Find each finished utterance in the parts, by id.

    If an utterance is in several parts (two runs at once, a retry after a failure), one with
    features is preferred to a failed one.

    Args:
        parts: the parts.
        sources: SHA-256 of each utterance's file, by id: rows of other files (a video that was
            replaced) are ignored, as are those of other utterances. None to use all rows.
    """
    found: dict[str, Row] = {}
    for part in parts:
        for index, record in enumerate(part.records):
            if sources is not None and sources.get(record.id) != record.source_sha256:
                continue
            known = found.get(record.id)
            if known is None or known.record.status == "failed":
                found[record.id] = Row(part, index, record)
    return found


def _open(path: Path) -> Part:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    records = tuple(Record(**row) for row in json.loads(header.pop("__metadata__")["records"]))
    return Part(path, records, 8 + header_bytes, header)


def _check_range(records: list[Record], modality: str, values: np.ndarray, dtype: str) -> None:
    limit = float(np.finfo(dtype).max)
    good = np.abs(values).max(axis=1, initial=0.0) <= limit  # NaN compares false
    if good.all():
        return
    bad_row = int(np.flatnonzero(~good)[0])
    ends = np.cumsum([record.frames(modality) for record in records])
    record = records[int(np.searchsorted(ends, bad_row, side="right"))]
    worst = values[bad_row][np.argmax(~(np.abs(values[bad_row]) <= limit))]
    remedy = "extract with --dtype float32" if np.isfinite(worst) else "check the encoder"
    raise ValueError(
        f"utterance {record.id!r}: {modality} feature {worst} does not fit {dtype}; {remedy}"
    )
