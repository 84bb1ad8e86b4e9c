"""Export a published store to the files that other programs read: h5, npz, MMSA's pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pandas as pd
import torch

from cache.convert.arguments import check_export, check_new, manifest_path
from cache.convert.layouts import LAYOUT, LAYOUT_VERSION
from cache.convert.mmsa import write_mmsa
from cache.open import open_store
from cache.reader import FeatureStore
from manifests.atomic import atomic_path
from manifests.budget import check_fits

BLOCK = 512  # utterances gathered at a time


def export(
    store: str | Path,
    to: str,
    out: Path,
    manifest: str | Path | None = None,
    on_block: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write a store to one file of another format.

    Args:
        store: a published store.
        to: ``h5``, ``npz`` or ``mmsa``.
        out: the file; it must not exist.
        manifest: for ``mmsa``: the source of transcripts, labels and splits; a dataset below
            ``data/``, a folder with ``manifest.parquet``, or a Parquet file.
        on_block: called with (utterances written, utterances in total); for ``h5`` only, since the
            other formats are assembled in memory.

    Returns:
        Sentences on what the file lacks.

    Raises:
        ValueError: the file exists, the manifest is missing or does not fit the store or the
            format, an id cannot be written in this format, or the memory cannot hold the file.
    """
    check_export(to, out, manifest)
    opened = open_store(store)
    with _new_file(out) as file:
        if to == "h5":
            _check_text(opened, "HDF5")
            _write_h5(opened, file, on_block)
        elif to == "npz":
            _check_text(opened, "npz")
            _write_npz(opened, file)
        else:
            assert manifest is not None
            table = read_manifest(manifest)
            notes = write_mmsa(opened, table, file)
            excluded = len(set(opened.ids) - set(table["id"]))
            if excluded:
                notes.append(f"{excluded} utterances of the store are not in the manifest")
            return notes
    return []


def read_manifest(name: str | Path) -> pd.DataFrame:
    """Read the table of a dataset below ``data/``, of a manifest's folder, or in a Parquet file.

    Raises:
        ValueError: no such file, or a table without ids.
    """
    path = manifest_path(name)
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a manifest: {error}") from error
    if "id" not in table:
        raise ValueError(f"{path}: no column 'id'")
    return table


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for atomic writing; an existing file is never replaced."""
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("xb+") as file:
        yield file


def _check_text(store: FeatureStore, form: str) -> None:
    for i in store.ids:
        if "\0" in i:
            raise ValueError(f"{store.path}: the id {i!r} contains a NUL, which {form} cannot keep")


def _about(store: FeatureStore) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "version": LAYOUT_VERSION,
        "dataset": store.dataset,
        "store": json.dumps(store.attributes, sort_keys=True, default=str),
    }


def _columns(store: FeatureStore) -> dict[str, np.ndarray]:
    columns = {name: store.column(name) for name in ("status", "error", "duration")}
    # A NUL would end the text in either format; an error message loses nothing without it.
    columns["error"] = np.array([str(e).replace("\0", " ") for e in columns["error"]], dtype=object)
    return {"ids": np.array(store.ids, dtype=object), **columns}


def _write_h5(
    store: FeatureStore, target: BinaryIO, on_block: Callable[[int, int], None] | None
) -> None:
    features = store.select(store.ids, resident=False)
    with h5py.File(target, "w") as file:
        file.attrs.update(_about(store))
        for name, column in _columns(store).items():
            text = column.dtype.kind not in "f"
            kind = h5py.string_dtype() if text else column.dtype
            file.create_dataset(name, data=column.astype(object) if text else column, dtype=kind)
        rows = {}
        for modality, width in store.widths.items():
            offsets = store.offsets(modality)
            file[f"{modality}/offsets"] = offsets
            shape = (int(offsets[-1]), width)
            rows[modality] = (
                file.create_dataset(f"{modality}/values", shape, store.recipe.dtype),
                offsets,
            )
        for start in range(0, len(store.ids), BLOCK):
            stop = min(start + BLOCK, len(store.ids))
            for modality, packed in features.batch(torch.arange(start, stop)).items():
                values, offsets = rows[modality]
                values[int(offsets[start]) : int(offsets[stop])] = packed.values.numpy()
            if on_block is not None:
                on_block(stop, len(store.ids))


def _write_npz(store: FeatureStore, file: BinaryIO) -> None:
    columns = _columns(store)
    _check_memory(store, columns)
    arrays = {
        name: column if column.dtype.kind == "f" else np.array([str(v) for v in column], dtype=str)
        for name, column in columns.items()
    }
    features = store.select(store.ids, resident=True)  # in the store's order: nothing to gather
    for modality, values in features.values.items():
        arrays[f"{modality}/values"] = values.numpy()
        arrays[f"{modality}/offsets"] = store.offsets(modality)
    arrays["about"] = np.array(json.dumps(_about(store)))
    np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes any name for allow_pickle


def _check_memory(store: FeatureStore, columns: Mapping[str, np.ndarray]) -> None:
    itemsize = np.dtype(store.recipe.dtype).itemsize
    needed = sum(int(store.offsets(m)[-1]) * width * itemsize for m, width in store.widths.items())
    for column in columns.values():
        if column.dtype.kind != "f":  # an array of strings is as wide as the longest of them
            needed += len(column) * 4 * max((len(str(text)) for text in column), default=0)
    check_fits(f"{store.path} as an npz file", needed, "; export to h5, which is written in blocks")
