"""What comes from elsewhere, looked at before anything is done with it.

A store, the list of its files and a catalogue were written by somebody else, another release or
nobody who means well. What the checksums approve may still be no store that can be read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from cache.store.disk import read_regular
from cache.store.parts import STATUSES
from cache.store.recipe import (
    FORMAT_VERSION,
    MODALITIES,
    STORABLE,
    Recipe,
    check_place,
    digest_of,
    store_name,
)

COLUMNS = ("id", "status", "error", "duration")
"""The table of utterances."""

LARGEST_METADATA = 16 << 20
"""Bytes that a ``zarr.json`` may have."""

_LITTLE = [{"name": "bytes", "configuration": {"endian": "little"}}]
PLAIN = {
    **dict.fromkeys(("float16", "float32", "float64", "int64"), _LITTLE),
    "string": [{"name": "vlen-utf8"}],
}
"""The types of a store's arrays, each with the codecs of one that is not compressed."""


class NewerFormatError(ValueError):
    """A store of a format that only a later release knows."""


def parse_json(raw: bytes, where: str) -> Any:
    """A value from JSON; ``where`` is named in errors.

    Raises:
        ValueError: it is none, or nested beyond all measure.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def is_count(value: Any) -> bool:
    """Whether this is a number of bytes, files or rows: no truth value, no fraction, no giant."""
    return type(value) is int and 0 <= value < 2**63


def is_sha256(value: Any) -> bool:
    """Whether this is a SHA-256 as we write it, 64 hex digits."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


class ArrayMetadata(NamedTuple):
    """What the ``zarr.json`` of an array says: shape, shape of a chunk, type, whether it is plain.

    Plain is an array whose chunk files are its pieces, neither compressed nor sharded.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    kind: str
    plain: bool


def array_metadata(folder: Path, dimensions: int) -> ArrayMetadata:
    """The metadata of an array of a store, which has so many dimensions.

    Raises:
        ValueError: it is no such array.
        OSError: there is none.
    """
    where = folder / "zarr.json"
    meta = parse_json(read_regular(where, LARGEST_METADATA), str(where))
    try:
        shape, chunk = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        kind, codecs = meta["data_type"], meta["codecs"]
        good = len(shape) == len(chunk) == dimensions and kind in PLAIN and codecs
        good = good and all(map(is_count, (*shape, *chunk))) and 0 not in chunk
        # Zarr's releases write an empty configuration or none.
        told = [{key: value for key, value in codec.items() if value} for codec in codecs]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is none of a feature store: {error!r:.200}") from error
    if not good:
        found = f"{kind!r:.50}, shape {shape!r:.50}, chunks {chunk!r:.50}"
        raise ValueError(f"{where} is none of a feature store: an array of {found}")
    return ArrayMetadata(tuple(shape), tuple(chunk), kind, told == PLAIN[kind])


def attributes_of(raw: bytes, where: str) -> dict[str, Any]:
    """A store's root attributes from its ``zarr.json``: all that a reader goes by is as it must be.

    Args:
        raw: the bytes of ``zarr.json``.
        where: what is named in errors.

    Raises:
        NewerFormatError: the store needs a later release.
        ValueError: these are no attributes of a feature store, or they contradict each other.
    """
    root = parse_json(raw, where)
    found = root.get("attributes") if isinstance(root, dict) else None
    if not isinstance(found, dict) or type(found.get("format_version")) is not int:
        raise ValueError(f"{where} is none of a feature store: it says no format version")
    version = found["format_version"]
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{where} has format version {version}, this release reads {FORMAT_VERSION}; "
            "install a release that knows it, or extract again"
        )
    try:
        wrong = "format_version" if version != FORMAT_VERSION else _wrong(found)
        json.dumps(found, ensure_ascii=False).encode()  # no lone surrogate
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(f"{where} is none of a feature store: {e!r:.200}") from e
    if wrong:
        raise ValueError(f"{where} is none of a feature store: {wrong} is {found[wrong]!r:.200}")
    return found


def read_attributes(store: Path) -> dict[str, Any]:
    """The root attributes of a local store; errors as for `attributes_of`, and OSError."""
    path = store / "zarr.json"
    return attributes_of(read_regular(path, LARGEST_METADATA), str(path))


def check_same_place(attributes: Mapping[str, Any], dataset: str, name: str) -> None:
    """Refuse a store that is called otherwise than its recipe says.

    Raises:
        ValueError: it is; the dataset in its recipe cannot even be a folder, or is another one.
    """
    recipe = attributes["recipe"]
    own = store_name(recipe["encoder"], recipe["sampling"], attributes["digest"])
    check_place(recipe["dataset"], own)
    if (recipe["dataset"], own) != (dataset, name):
        raise ValueError(
            f"{dataset}/{name} is {recipe['dataset']}/{own} by its recipe, and must be called so"
        )


def missing_file(folder: Path, listed: Collection[str]) -> str:
    """A file that the arrays of a store must have and that its checksums do not list.

    Args:
        folder: holds at least the store's ``zarr.json`` files.
        listed: paths in ``checksums.json``.

    Returns:
        The first such path, empty if there is none.

    Raises:
        ValueError: the attributes or arrays are none of a feature store.
        OSError: one of the ``zarr.json`` that are listed is not there.
    """
    return next((name for name in _needed(folder) if name not in listed), "")


def _wrong(found: Mapping[str, Any]) -> str:
    """Which of the root attributes cannot be; empty if none."""
    recipe, widths, counts = found["recipe"], found["widths"], found["counts"]
    made = Recipe(**{field.name: recipe[field.name] for field in fields(Recipe)})
    store_name(made.encoder, made.sampling, found["digest"])
    if found["digest"] != digest_of({"format_version": FORMAT_VERSION, **recipe}):
        return "digest"
    if not set(MODALITIES) <= set(widths) <= set(STORABLE):
        return "widths"
    if not all(is_count(width) and width for width in widths.values()):
        return "widths"
    needed = ("utterances", *STATUSES, *(f"{modality}_frames" for modality in widths))
    if not all(is_count(counts[name]) for name in needed):
        return "counts"
    per_frame = found.get("rows_per_frame", {})
    good = set(per_frame) <= set(widths) and all(is_count(n) and n for n in per_frame.values())
    return "" if good else "rows_per_frame"


def _needed(folder: Path) -> Iterator[str]:
    """Every file of a store; its arrays have the shapes that the attributes demand."""
    yield "zarr.json"
    found = read_attributes(folder)
    count = found["counts"]["utterances"]
    arrays: dict[str, tuple[tuple[int, ...], str]] = {
        f"utterances/{name}": ((count,), "float64" if name == "duration" else "string")
        for name in COLUMNS
    }
    for modality, width in found["widths"].items():
        rows = found["counts"][f"{modality}_frames"]
        arrays[f"{modality}/values"] = (rows, width), found["recipe"]["dtype"]
        arrays[f"{modality}/offsets"] = (count + 1,), "int64"
    for group in (*found["widths"], "utterances"):
        yield f"{group}/zarr.json"
    for array, (shape, kind) in arrays.items():
        yield f"{array}/zarr.json"
        meta = array_metadata(folder / array, len(shape))
        if meta[:1] + meta[2:] != (shape, kind, True):
            raise ValueError(
                f"{folder / array / 'zarr.json'} is none of a feature store: an array of {kind} "
                f"and shape {list(shape)} was expected, not compressed"
            )
        chunks = [-(-size // step) for size, step in zip(shape, meta.chunk, strict=True)]
        yield from _keys(f"{array}/c", chunks)


def _keys(path: str, counts: list[int]) -> Iterator[str]:
    """The files of an array's chunks, one at a time: there may be said to be any number."""
    if not counts:
        yield path
        return
    for index in range(counts[0]):
        yield from _keys(f"{path}/{index}", counts[1:])
