"""Publish the features of another program's file as a store."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cache.convert.arguments import check_import
from cache.convert.layouts import ExternalFeatures, read_csv, read_h5, read_npz
from cache.convert.mmsa import read_mmsa
from cache.store.disk import sha256_of
from cache.store.parts import Parts, Record
from cache.store.publish import is_published, publish
from cache.store.recipe import (
    MODALITIES,
    STORABLE,
    Recipe,
    check_portable,
    digest_of_sources,
    user_name,
)
from manifests.budget import Budget, check_fits

RULES = 1  # incremented when the same file would give other values
BLOCK = 256  # utterances in a part
BLOCK_BYTES = 1 << 30  # memory for the work on a part


def read(path: Path, form: str, modality: str | None = None, text: bool = True) -> ExternalFeatures:
    """Read a file of another program.

    Args:
        path: the file.
        form: ``mmsa``, ``h5``, ``npz`` or ``csv``.
        modality: for ``csv`` without a column ``modality``: ``audio`` or ``vision``.
        text: whether text features are read, if the file has some.

    Raises:
        ValueError: no such file, or a file of another format.
    """
    check_import(path, form)
    if form == "csv":
        return read_csv(path, modality)
    readers = {"mmsa": read_mmsa, "h5": read_h5, "npz": read_npz}
    return readers[form](path, STORABLE if text else MODALITIES)


def import_source(
    source: ExternalFeatures,
    form: str,
    root: Path,
    dataset: str | None = None,
    name: str | None = None,
    dtype: str = "float16",
    non_finite: str = "refuse",
    licence: str = "",
    modality: str | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> Path:
    """Publish the content of a file as a store below ``<root>/<dataset>/``.

    The recipe contains the file's SHA-256 in the place of an encoder's weights, so the same file
    gives the same store on every machine.

    Args:
        source: from :func:`read`.
        form: the format of the file.
        root: the folder of the stores.
        dataset: name of the dataset; by default the one in the file.
        name: the encoder's part of the store's name; by default the file's name.
        dtype: stored type, ``float16`` or ``float32``.
        non_finite: ``refuse`` NaN and infinity, or replace them by ``zero``.
        licence: licence of the features, kept in the store.
        modality: the argument that :func:`read` was called with.
        on_block: called with (utterances done, utterances in total).

    Returns:
        The path of the store. A store that is already published is left as it is.

    Raises:
        ValueError: a value is not finite or does not fit `dtype`, the dataset has no name or a name
            that cannot be a folder's, or memory or disk are too small.
    """
    settings: dict[str, Any] = {"format": form, "non_finite": non_finite}
    if modality is not None:
        settings["modality"] = modality
    if "text" in source.widths:
        settings["text"] = True
    recipe = _recipe(source, dataset or source.dataset, name, dtype, settings)
    check_portable(recipe.dataset, recipe.store_name)
    store = root / recipe.dataset / recipe.store_name
    if is_published(store):
        Parts(store).remove()  # of an import that was killed just after publishing
        return store
    _check_disk(source, root, dtype)
    for block in import_blocks(source):
        _write(Parts(store), source, block, dtype, non_finite)
        if on_block is not None:
            on_block(block.stop, len(source.ids))
    about = {
        "licence": licence,
        "creator": user_name(),
        "imported": {"format": form, "sha256": recipe.encoders["audio"].weights},
        "tools": {"python": platform.python_version()}
        | {package: version(package) for package in ("semanticmac", "numpy", "zarr")},
    }
    widths = dict.fromkeys(MODALITIES, 1) | source.widths
    return publish(store, recipe, widths, about, source.ids)


def _recipe(
    source: ExternalFeatures,
    dataset: str | None,
    name: str | None,
    dtype: str,
    settings: dict[str, Any],
) -> Recipe:
    if not dataset:
        raise ValueError(f"{source.path} does not name its dataset: pass --dataset NAME")
    try:
        return Recipe.with_one_encoder(
            dataset=dataset,
            encoder=name or source.path.stem,
            weights=sha256_of(source.path),
            settings=settings,
            sampling={"fps": 0},  # the file does not contain its sampling rate
            preprocess=RULES,
            utterances=digest_of_sources((i, "", None, None, None) for i in source.ids),
            dtype=dtype,
        )
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}; pass --dataset or --name") from error


def _write(
    parts: Parts, source: ExternalFeatures, block: range, dtype: str, non_finite: str
) -> None:
    # A store always has audio and vision; a modality that the file lacks has no rows and width 1.
    joined = {m: np.empty((0, 1), np.float32) for m in MODALITIES if m not in source.widths}
    frames: dict[str, list[int]] = {}
    for m, sequences in source.sequences.items():
        rows = [_checked(source, m, source.ids[i], sequences[i], dtype, non_finite) for i in block]
        frames[m] = [len(r) for r in rows]
        joined[m] = np.concatenate(rows)
    records = [
        _record(source, i, {m: counts[place] for m, counts in frames.items()})
        for place, i in enumerate(block)
    ]
    parts.write(records, joined, dtype)


def _check_disk(source: ExternalFeatures, root: Path, dtype: str) -> None:
    values = sum(float(source.frames(m).sum()) * width for m, width in source.widths.items())
    needed = values * np.dtype(dtype).itemsize
    place = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"{source.path}: its features take {needed / 1e9:.2f} GB as a store, {place} has "
            f"{free / 1e9:.2f} GB free; make room, or name another folder with --stores"
        )
    most = Budget.of(source.path).most
    if needed > most:
        raise ValueError(
            f"{source.path}: its features take {needed / 1e9:.2f} GB as a store; a file of this "
            f"size may fill {most / 1e9:.2f} GB: most of it is not data, or is compressed too well"
        )


def import_blocks(source: ExternalFeatures) -> Iterator[range]:
    """Split the utterances into blocks of at most `BLOCK`; fewer if they are long (memory)."""
    sizes = np.zeros(len(source.ids))
    for modality, width in source.widths.items():
        sizes += source.frames(modality) * (16.0 * width)  # float64, float32, and these joined
    longest = int(np.argmax(sizes))
    check_fits(f"{source.path}: utterance {source.ids[longest]!r}", sizes[longest])
    # Each utterance takes a share of a block: by its size, but not less than 1 / BLOCK.
    shares = np.maximum(sizes, BLOCK_BYTES // BLOCK)
    places = (np.cumsum(shares) - shares) // BLOCK_BYTES
    edges = np.flatnonzero(np.diff(places, prepend=-1, append=np.inf)).tolist()
    return (range(start, stop) for start, stop in pairwise(edges))


def _checked(
    source: ExternalFeatures, modality: str, i: str, values: np.ndarray, dtype: str, non_finite: str
) -> np.ndarray:
    """Return the rows as float32 ``[T, d]`` after checking that `dtype` can hold every value."""
    finite = np.isfinite(values)
    if not finite.all():
        if non_finite == "refuse":
            row, column = np.argwhere(~finite)[0]
            raise ValueError(
                f"{source.path}: utterance {i!r}: {modality} row {row}, column {column} is "
                f"{values[row, column]}; --non-finite zero replaces such values by 0"
            )
        values = np.where(finite, values, 0)
    largest = np.abs(values.astype(np.float64)).max(initial=0.0)
    if largest > np.finfo(dtype).max:
        remedy = "import with --dtype float32" if dtype == "float16" else "a store cannot hold it"
        raise ValueError(
            f"{source.path}: utterance {i!r}: {modality} feature of size {largest:g} does not fit "
            f"{dtype}; {remedy}"
        )
    return np.asarray(values, np.float32)


def _record(source: ExternalFeatures, index: int, frames: dict[str, int]) -> Record:
    audio, vision = frames.get("audio", 0), frames.get("vision", 0)
    status = "ok" if audio and vision else "no_audio" if vision else "no_video"
    status = status if audio or vision else "failed"
    error = "" if status == "ok" else "no rows in the imported file"
    stated = {name: column[index] for name, column in source.columns.items()}
    return Record(
        source.ids[index],
        stated.get("status", status),
        stated.get("error", error),
        stated.get("duration", 0.0),
        audio,
        vision,
        frames.get("text", 0),
    )
