"""From parts to a published store: assembled aside, checksummed, synced, sealed, renamed.

The rows lie in the order of the utterance ids, so the same utterances give the same bytes whatever
the blocks, workers and interruptions that led there. Nothing in the store depends on the time.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.chunks import ChunkedRows, read_column
from cache.disk import locked, plainly, remove_tree, seal_tree, sha256_of, sync_folder
from cache.parts import STATUSES, Part, Parts, Record, newest_per_id
from cache.recipe import FORMAT_VERSION, MODALITIES, Recipe

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20
CHECKSUMS = "checksums.json"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def publish(
    store: Path,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    ids: Sequence[str],
    on_chunk: Callable[[int, int], None] | None = None,
) -> Path:
    """Assemble the parts of ``store`` and rename the whole into place.

    Args:
        store: where the store shall stand; its parts lie in ``<store>.parts``.
        recipe: what the features were made from.
        widths: columns per modality.
        about: further root attributes (manifest digest, licence, creator, tool versions, ...).
        ids: every utterance the store must hold.
        on_chunk: called with (chunks written, chunks in all).

    Returns:
        ``store``. If somebody else published it meanwhile, theirs stays and ours is dropped: equal
        recipes give equal features.

    Raises:
        ValueError: an utterance is in no part, or the disk is full.
    """
    parts = Parts(store)
    with locked(parts.folder / "assembling.lock") as alone:  # others wait, then find the store
        if not is_published(store):
            for stale in parts.folder.glob("assembling-*") if alone else ():
                remove_tree(stale)  # of a run that was killed
            _publish(store, parts, recipe, widths, about, ids, on_chunk)
    parts.remove()  # after the lock: a network file system keeps the folder of an open file
    return store


def _publish(
    store: Path,
    parts: Parts,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    ids: Sequence[str],
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    staging = parts.folder / f"assembling-{uuid.uuid4().hex}"
    needed = 0
    try:
        found = newest_per_id(parts.read())
        missing = [i for i in ids if i not in found]
        if missing and is_published(store):
            return  # where nobody waits for locks, the parts may go while we read them
        if missing:
            raise ValueError(f"{store}: {len(missing)} utterances are in no part: {missing[:5]}")
        rows = [found[i] for i in sorted(ids)]
        needed = _bytes_of(rows, widths, np.dtype(recipe.dtype).itemsize)
        if needed > shutil.disk_usage(parts.folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _assemble(staging, recipe, widths, about, rows, on_chunk)
        write_checksums(staging)
        seal_tree(staging)
        staging.rename(store)  # refused by the system if a store stands there already
        sync_folder(store.parent)
    except OSError as error:
        if not is_published(store):
            raise ValueError(
                f"{store}: {plainly(error)} (assembling needs {needed / 1e6:.3f} MB beside the "
                "parts); finished blocks are kept, make room and run again"
            ) from error
        log.info("%s was published by another run meanwhile; using it", store)
    finally:
        remove_tree(staging)


def _bytes_of(
    rows: Sequence[tuple[Part | Published, int]], widths: Mapping[str, int], itemsize: int
) -> int:
    """Size of the values; beside them the columns are nothing."""
    records = [part.records[index] for part, index in rows]
    return sum(itemsize * widths[m] * sum(r.frames(m) for r in records) for m in widths)


def republish(
    store: Path, recipe: Recipe, widths: Mapping[str, int], about: Mapping[str, Any], retried: Parts
) -> Path:
    """Replace a published store by one whose failed utterances are taken from parts.

    All other rows are carried over byte for byte. An utterance that failed and is in no part stays
    as it is. A reader sees the old store or the new one; whoever has the old one mapped keeps it.

    Args:
        store: the published store.
        recipe: what its features were made from.
        widths: columns per modality.
        about: further root attributes, as for :func:`publish`.
        retried: the parts; they are removed in the end.
    """
    staging = retried.folder / f"assembling-{uuid.uuid4().hex}"
    with locked(store.with_name(f".{store.name}.lock")):
        old = Published(store)
        found = newest_per_id(retried.read())
        rows: list[tuple[Part | Published, int]] = [
            found.get(record.id, (old, index)) if record.status == "failed" else (old, index)
            for index, record in enumerate(old.records)
        ]
        try:
            _assemble(staging, recipe, widths, about, rows, None)
            write_checksums(staging)
            seal_tree(staging)
            _replace(store, staging)
        except OSError:
            remove_tree(staging)
            raise
    retried.remove()
    return store


@dataclass(frozen=True)
class Published:
    """A published store, seen as one large part."""

    path: Path

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """What became of each utterance, in the order of the rows."""
        table = ("id", "status", "error", "duration")
        columns = [read_column(self.path / "utterances" / name).tolist() for name in table]
        for modality in MODALITIES:
            columns.append(np.diff(read_column(self.path / modality / "offsets")).tolist())
        return tuple(Record(*row) for row in zip(*columns, strict=True))

    def values(self, modality: str) -> np.ndarray:
        """All rows of one modality, ``[sum T, d]``, mapped where that is possible."""
        array = ChunkedRows.open(self.path / modality / "values")
        mapped = array.map()
        return array.read(np.array([0]), np.array(array.shape[:1])) if mapped is None else mapped


def is_published(store: Path) -> bool:
    """Whether a whole store stands at this path.

    One that a killed :func:`republish` left aside is put back first.
    """
    if (store / CHECKSUMS).is_file():
        return True
    aside = _aside(store)
    if not (aside / CHECKSUMS).is_file():
        return False
    with suppress(OSError):  # another process put it back, or the new one in its place
        aside.rename(store)
        log.warning("%s is back: its replacement had been interrupted", store)
    return (store / CHECKSUMS).is_file()


def _replace(store: Path, new: Path) -> None:
    """Put ``new`` in the place of ``store`` and delete the old one."""
    remove_tree(_aside(store))  # left by a run that was killed when it had replaced the store
    if _exchange(new, store):
        sync_folder(store.parent)
        remove_tree(new)
        return
    while True:
        store.rename(_aside(store))
        try:
            new.rename(store)
            break
        except OSError:
            # A reader came in between the two lines and put the old store back: once more.
            if not (store / CHECKSUMS).is_file():
                is_published(store)
                raise
    sync_folder(store.parent)
    remove_tree(_aside(store))


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _aside(store: Path) -> Path:
    return store.with_name(f".{store.name}.aside")


def chunk_rows(width: int, itemsize: int) -> int:
    """Rows in a chunk of about 8 MiB: whole pages for all usual widths, ready to be mapped."""
    rows = CHUNK_BYTES // (width * itemsize)
    return max(1, rows // 1024 * 1024 or rows)


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json``: size and SHA-256 of every other file of the store."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    text = json.dumps({"algorithm": "sha256", "files": files}, indent=1, sort_keys=True)
    (folder / CHECKSUMS).write_text(text, encoding="utf-8")


def _assemble(
    folder: Path,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    rows: Sequence[tuple[Part | Published, int]],
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    records = [part.records[index] for part, index in rows]
    counts = {
        "utterances": len(records),
        **{status: sum(record.status == status for record in records) for status in STATUSES},
        **{f"{m}_frames": sum(record.frames(m) for record in records) for m in widths},
    }
    attributes = {
        "format_version": FORMAT_VERSION,
        "digest": recipe.digest,
        "recipe": recipe.as_dict(),
        "widths": dict(widths),
        "counts": counts,
        **about,
    }
    root = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    itemsize = np.dtype(recipe.dtype).itemsize
    in_all = sum(-(-counts[f"{m}_frames"] // chunk_rows(widths[m], itemsize)) for m in widths)
    written = 0
    for modality in widths:
        lengths = [record.frames(modality) for record in records]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        group = root.create_group(modality)
        _column(group, "offsets", offsets)
        shape = (int(offsets[-1]), widths[modality])
        step = min(chunk_rows(shape[1], itemsize), max(1, shape[0]))
        values = group.create_array(
            "values",
            shape=shape,
            chunks=(step, shape[1]),
            dtype=recipe.dtype,
            compressors=None,
            filters=None,
            config={"write_empty_chunks": True},
        )
        for start, block in _in_chunks(rows, modality, step, shape[1], recipe.dtype):
            values[start : start + len(block)] = block
            written += 1
            if on_chunk is not None:
                on_chunk(written, in_all)
    table = root.create_group("utterances")
    _column(table, "id", np.array([record.id for record in records], dtype=object))
    _column(table, "status", np.array([record.status for record in records], dtype=object))
    _column(table, "error", np.array([record.error for record in records], dtype=object))
    _column(table, "duration", np.array([record.duration for record in records], dtype=np.float64))


def _in_chunks(
    rows: Sequence[tuple[Part | Published, int]], modality: str, step: int, width: int, dtype: str
) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of all utterances, in order, one chunk at a time (the last may be shorter)."""
    chunk = np.empty((step, width), dtype)
    start = filled = 0
    mapped: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
    for part, index in rows:
        if part.path not in mapped:
            ends = np.cumsum([record.frames(modality) for record in part.records])
            mapped[part.path] = part.values(modality), ends
        values, ends = mapped[part.path]
        stop = int(ends[index])
        row = stop - part.records[index].frames(modality)
        while row < stop:
            taken = min(stop - row, step - filled)
            chunk[filled : filled + taken] = values[row : row + taken]
            row, filled = row + taken, filled + taken
            if filled == step:
                yield start, chunk
                start, filled = start + step, 0
    if filled:
        yield start, chunk[:filled]


def _column(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """A one-dimensional array in uncompressed chunks of at most 8 MiB (2**20 entries)."""
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(min(max(1, len(values)), 1 << 20),),
        dtype=str if values.dtype == object else values.dtype,
        compressors=None,
        filters=None,
        config={"write_empty_chunks": True},
    )
    if len(values):
        array[:] = values
