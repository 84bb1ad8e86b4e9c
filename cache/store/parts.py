"""Partial results of an extraction: one safetensors file per finished block of utterances.

A part is named after the SHA-256 of its bytes and written atomically: a file whose name matches its
bytes is complete. Parts of several runs, block sizes or machines may be in one folder: equal
utterances have equal values.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

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

log = logging.getLogger(__name__)


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
    """

    id: str
    status: str
    error: str = ""
    duration: float = 0.0
    audio_frames: int = 0
    vision_frames: int = 0
    text_frames: int = 0

    def frames(self, modality: str) -> int:
        """Number of rows in one modality."""
        return int(getattr(self, f"{modality}_frames"))


def frames_of(records: Sequence[Record], modality: str) -> list[int]:
    """Number of rows in one modality, for each record."""
    return list(map(attrgetter(f"{modality}_frames"), records))


@dataclass(frozen=True)
class Part:
    """One file of finished utterances: the records, and where in the file their rows are."""

    path: Path
    records: tuple[Record, ...]
    data_start: int
    header: dict[str, dict]

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
        plain = [asdict(record) for record in records]
        if "text" not in features:
            for row in plain:
                del row["text_frames"]  # keeps the bytes of such parts as they were before text
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


def best_per_id(parts: Iterable[Part]) -> dict[str, tuple[Part, int]]:
    """Map each finished utterance to its place: ``id -> (part, index in the part)``.

    If an utterance is in several parts (two runs at once, a retry after a failure), one with
    features is preferred to a failed one.
    """
    found: dict[str, tuple[Part, int]] = {}
    for part in parts:
        for index, record in enumerate(part.records):
            known = found.get(record.id)
            if known is None or known[0].records[known[1]].status == "failed":
                found[record.id] = (part, index)
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
