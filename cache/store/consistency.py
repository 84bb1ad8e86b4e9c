"""Check that the files of a store agree with each other and with the store's name.

Matching checksums do not make a store readable: its publisher may have listed too few files, or
files that contradict each other. Three verbs in this package:

- ``parse_*`` and ``read_*`` validate one file and return its content,
- ``check_*`` (here) compare several files, return nothing and raise an error that names the file,
- ``verify`` (:mod:`cache.share.verify`) compares every byte with the checksums, returns all faults.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from cache.store.checksums import CHECKSUMS, Checksums
from cache.store.metadata import columns_of, read_array_metadata, read_attributes
from cache.store.recipe import Recipe, check_place
from cache.store.table import check_sources, read_offsets, read_table_column


class UnlistedFileError(ValueError):
    """A file that the arrays of a store need is not in its checksums.

    Attributes:
        file: path inside the store.
    """

    def __init__(self, file: str) -> None:
        super().__init__(f"{CHECKSUMS} does not list {file}")
        self.file = file


def check_named_by_recipe(attributes: Mapping[str, Any], dataset: str, name: str) -> None:
    """Check that a store has the name that its recipe gives it.

    Args:
        attributes: the store's root attributes.
        dataset: name of the folder that holds the store.
        name: name of the store.

    Raises:
        ValueError: it has another name, or the dataset in its recipe cannot be a folder.
    """
    recipe = Recipe.of_store(attributes)
    own = recipe.store_name
    check_place(recipe.dataset, own)
    if (recipe.dataset, own) != (dataset, name):
        raise ValueError(
            f"{dataset}/{name} is {recipe.dataset}/{own} according to its recipe; rename it"
        )


def check_all_listed(store: Path, listed: Collection[str]) -> None:
    """Check that the checksums list every file that the arrays of a store need.

    Args:
        store: holds at least the store's ``zarr.json`` files.
        listed: paths in ``checksums.json``.

    Raises:
        UnlistedFileError: a file is not listed.
        ValueError: the attributes or arrays are not those of a feature store.
        OSError: a listed ``zarr.json`` is missing.
    """
    for name in _needed_files(store):
        if name not in listed:
            raise UnlistedFileError(name)


def check_all_present(store: Path) -> None:
    """Check, before a folder gets a store's name, that all listed files exist with their size.

    On a file system whose locks hold on one machine only, another machine may have removed some.

    Raises:
        OSError: a file is missing, or has another size.
    """
    checksums = Checksums.parse((store / CHECKSUMS).read_bytes(), str(store / CHECKSUMS))
    for name, entry in checksums.files.items():
        if (store / name).stat().st_size != entry.size:
            raise OSError(f"{store / name} was changed by another process")


def check_index(store: Path, attributes: Mapping[str, Any]) -> None:
    """Check that a store's table and offsets agree with each other and with its attributes.

    Raises:
        ValueError: they contradict each other, or are damaged.
    """
    columns = {
        name: read_table_column(store, name, attributes["counts"])
        for name in columns_of(attributes)
    }
    if "source_sha256" in columns:
        check_sources(store, columns, attributes["recipe"]["utterances"])
    for modality in attributes["widths"]:
        read_offsets(store, modality, attributes["counts"])


def _needed_files(store: Path) -> Iterator[str]:
    """Every file of a store; its arrays have the shapes that the attributes demand."""
    yield "zarr.json"
    found = read_attributes(store)
    count = found["counts"]["utterances"]
    recipe = Recipe.of_store(found)
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        f"utterances/{name}": ((count,), dtype) for name, dtype in columns_of(found).items()
    }
    for modality, width in found["widths"].items():
        rows = found["counts"][f"{modality}_frames"]
        arrays[f"{modality}/values"] = (rows, width), recipe.dtype
        arrays[f"{modality}/offsets"] = (count + 1,), "int64"
    for group in (*found["widths"], "utterances"):
        yield f"{group}/zarr.json"
    for array, (shape, dtype) in arrays.items():
        yield f"{array}/zarr.json"
        meta = read_array_metadata(store / array, len(shape))
        if (meta.shape, meta.dtype, meta.plain) != (shape, dtype, True):
            raise ValueError(
                f"{store / array / 'zarr.json'} is not feature-store metadata: expected an "
                f"uncompressed array of {dtype} with shape {list(shape)}"
            )
        chunks = [-(-size // step) for size, step in zip(shape, meta.chunk, strict=True)]
        yield from _chunk_files(f"{array}/c", chunks)


def _chunk_files(path: str, counts: list[int]) -> Iterator[str]:
    """The files of an array's chunks, lazily: untrusted metadata may claim any number of them."""
    if not counts:
        yield path
        return
    for index in range(counts[0]):
        yield from _chunk_files(f"{path}/{index}", counts[1:])
