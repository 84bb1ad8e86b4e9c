"""From parts to a published store: assembled aside, checksummed, synced, sealed, renamed.

The rows lie in the order of the utterance ids, so the same utterances give the same bytes whatever
the blocks, workers and interruptions that led there. Nothing in the store depends on the time.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from cache.disk import remove_tree, seal_tree, sha256_of, sync_folder
from cache.parts import STATUSES, Part, Parts, newest_per_id
from cache.recipe import FORMAT_VERSION, MODALITIES, Recipe

log = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20
CHECKSUMS = "checksums.json"


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
        ValueError: an utterance is in no part.
    """
    parts = Parts(store)
    staging = parts.folder / f"assembling-{uuid.uuid4().hex}"
    try:
        found = newest_per_id(parts.read())
        missing = [i for i in ids if i not in found]
        if missing:
            raise ValueError(f"{store}: {len(missing)} utterances are in no part: {missing[:5]}")
        rows = [found[i] for i in sorted(ids)]
        _assemble(staging, recipe, widths, about, rows, on_chunk)
        write_checksums(staging)
        seal_tree(staging)
        staging.rename(store)  # refused by the system if a store stands there already
        sync_folder(store.parent)
    except OSError:
        if not is_published(store):
            remove_tree(staging)
            raise
        log.info("%s was published by another run meanwhile; using it", store)
    parts.remove()
    return store


def is_published(store: Path) -> bool:
    """Whether a whole store stands at this path."""
    return (store / CHECKSUMS).is_file()


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
    rows: Sequence[tuple[Part, int]],
    on_chunk: Callable[[int, int], None] | None,
) -> None:
    records = [part.records[index] for part, index in rows]
    counts = {
        "utterances": len(records),
        **{status: sum(record.status == status for record in records) for status in STATUSES},
        **{f"{m}_frames": sum(record.frames(m) for record in records) for m in MODALITIES},
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
    in_all = sum(-(-counts[f"{m}_frames"] // chunk_rows(widths[m], itemsize)) for m in MODALITIES)
    written = 0
    for modality in MODALITIES:
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
    rows: Sequence[tuple[Part, int]], modality: str, step: int, width: int, dtype: str
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
