"""Write the files of a store from finished utterances: arrays, columns, attributes, checksums.

Rows are sorted by utterance id, so the same utterances give the same bytes whatever the blocks,
workers and interruptions of the extraction. Nothing in the store depends on the time.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.store.checksums import CHECKSUMS, write_checksums
from cache.store.chunks import row_numbers
from cache.store.consistency import UnlistedFileError, check_all_listed
from cache.store.disk import make_tree_read_only
from cache.store.metadata import COLUMNS, STATUSES
from cache.store.parts import Row, Source, frames_of
from cache.store.recipe import Recipe

CHUNK_BYTES = 8 << 20
CHUNKS_AT_ONCE = 16
"""Chunks in memory at once: the more, the more rows are read each time a part is opened."""


def bytes_of(rows: Sequence[Row], widths: Mapping[str, int], dtype: str) -> int:
    """Size of the values in bytes; the columns are negligible."""
    records = [row.record for row in rows]
    itemsize = np.dtype(dtype).itemsize
    return sum(widths[m] * itemsize * sum(frames_of(records, m)) for m in widths)


def assemble(
    folder: Path,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    rows: Sequence[Row],
    on_chunk: Callable[[int, int], None] | None = None,
) -> None:
    """Write a complete store to ``folder``: checksummed, synced, read-only, ready to be renamed.

    Args:
        folder: a new folder on the file system of the store.
        recipe: as for :func:`cache.store.publish.publish`, as are the following.
        widths: columns per modality.
        about: further root attributes.
        rows: the utterances, sorted by id.
        on_chunk: called with (chunks written, total chunks).

    Raises:
        OSError: it cannot be written, the disk has too little space for all of it, or another
            process removed files while it was written.
    """
    if bytes_of(rows, widths, recipe.dtype) > shutil.disk_usage(folder.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _write(folder, recipe, widths, about, rows, on_chunk)
    write_checksums(folder)
    _check_all_written(folder)
    make_tree_read_only(folder)


def _write(
    folder: Path,
    recipe: Recipe,
    widths: Mapping[str, int],
    about: Mapping[str, Any],
    rows: Sequence[Row],
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    records = [row.record for row in rows]
    with_status = Counter(record.status for record in records)
    counts = {
        "utterances": len(records),
        **{status: with_status[status] for status in STATUSES},
        **{f"{m}_frames": sum(frames_of(records, m)) for m in widths},
    }
    attributes = {
        "format_version": recipe.version,
        "dataset": recipe.dataset,
        "digest": recipe.digest,
        "recipe": recipe.as_dict(),
        "widths": dict(widths),
        "counts": counts,
        **about,
    }
    root = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    itemsize = np.dtype(recipe.dtype).itemsize
    total = sum(-(-counts[f"{m}_frames"] // chunk_rows(widths[m], itemsize)) for m in widths)
    written = 0
    for modality, width in widths.items():
        offsets = np.cumsum([0, *frames_of(records, modality)], dtype=np.int64)
        group = root.create_group(modality)
        _column(group, "offsets", offsets)
        for _ in _write_values(group, rows, offsets, modality, width, recipe.dtype):
            written += 1
            if on_chunk is not None:
                on_chunk(written, total)
    table = root.create_group("utterances")
    for name, kind in COLUMNS.items():
        dtype = object if kind == "string" else kind
        _column(table, name, np.array(list(map(attrgetter(name), records)), dtype))


def _write_values(
    group: zarr.Group,
    rows: Sequence[Row],
    offsets: np.ndarray,
    modality: str,
    width: int,
    dtype: str,
) -> Iterator[None]:
    """Write the rows of one modality; yields after each chunk."""
    shape = int(offsets[-1]), width
    step = min(chunk_rows(width, np.dtype(dtype).itemsize), max(1, shape[0]))
    values = group.create_array(
        "values",
        shape=shape,
        chunks=(step, width),
        dtype=dtype,
        compressors=None,
        filters=None,
        config={"write_empty_chunks": True},
    )
    for start, block in _in_chunks(rows, offsets, modality, step, width, dtype):
        values[start : start + len(block)] = block
        yield


def _in_chunks(
    rows: Sequence[Row], offsets: np.ndarray, modality: str, step: int, width: int, dtype: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row and values of each chunk, in order (the last may be shorter).

    Several chunks are filled at once, source by source. So a source is opened once for all its rows
    there, and the time does not depend on how the utterances are distributed over the parts.
    """
    sources, source_of, starts = _places_of(rows, modality)
    begins, ends = offsets[:-1], offsets[1:]
    total = int(offsets[-1])
    buffer = np.empty((min(CHUNKS_AT_ONCE * step, total), width), dtype)
    for start in range(0, total, max(1, len(buffer))):
        stop = min(start + len(buffer), total)
        here = np.arange(
            np.searchsorted(ends, start, side="right"), np.searchsorted(begins, stop, side="left")
        )
        here = here[ends[here] > begins[here]]
        here = here[np.argsort(source_of[here], kind="stable")]
        skipped = np.maximum(start - begins[here], 0)  # of an utterance that began before
        lengths = np.minimum(ends[here], stop) - begins[here] - skipped
        first_rows = starts[here] + skipped
        places = row_numbers(begins[here] + skipped - start, lengths)
        place = 0
        borders = np.flatnonzero(np.diff(source_of[here])) + 1
        for first, last in itertools.pairwise([0, *borders.tolist(), len(here)]):
            source, one = sources[source_of[here[first]]], slice(first, last)
            values = source.read(modality, first_rows[one], lengths[one])
            buffer[places[place : place + len(values)]] = values
            place += len(values)
        for row in range(start, stop, step):
            yield row, buffer[row - start : min(row + step, stop) - start]


def _places_of(rows: Sequence[Row], modality: str) -> tuple[list[Source], np.ndarray, np.ndarray]:
    """Return the sources, and per utterance the number of its source and its first row there."""
    sources = list({id(row.source): row.source for row in rows}.values())
    numbers = {id(source): number for number, source in enumerate(sources)}
    source_of = np.fromiter((numbers[id(row.source)] for row in rows), np.int64, len(rows))
    index = np.fromiter((row.index for row in rows), np.int64, len(rows))
    lengths = [np.array(frames_of(source.records, modality)) for source in sources]
    starts = np.concatenate([np.cumsum(each) - each for each in lengths])
    sizes = np.array([len(each) for each in lengths])
    return sources, source_of, starts[(np.cumsum(sizes) - sizes)[source_of] + index]


def _column(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """Write a one-dimensional array in uncompressed chunks of at most 2^20 entries (8 MiB)."""
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


def chunk_rows(width: int, itemsize: int) -> int:
    """Rows in a chunk of about 8 MiB: a whole number of memory pages for all usual widths."""
    rows = CHUNK_BYTES // (width * itemsize)
    return max(1, rows // 1024 * 1024 or rows)


def _check_all_written(folder: Path) -> None:
    """Check that no file was removed while the store was written.

    Another machine may take the folder for a leftover and remove it. Zarr makes missing folders
    again, so the rest would be written and would pass for a complete store.

    Raises:
        OSError: a file is missing.
    """
    listed = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"].keys()
    try:
        check_all_listed(folder, listed)
    except ValueError as error:  # a group that Zarr made again has no attributes
        missing = error.file if isinstance(error, UnlistedFileError) else "zarr.json"
        message = "another process removed it while the store was written"
        raise FileNotFoundError(errno.ENOENT, message, missing) from error
