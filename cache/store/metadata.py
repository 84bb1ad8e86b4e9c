"""What comes from elsewhere, looked at before anything is done with it.

A store, the list of its files and a catalogue were written by somebody else, another release or
nobody who means well. What the checksums approve may still be no store that can be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from cache.store.disk import read_regular
from cache.store.recipe import (
    FORMAT_VERSION,
    MODALITIES,
    STORABLE,
    Recipe,
    digest_of,
    store_name,
)

STATUSES = ("ok", "no_audio", "no_video", "failed")
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
    dtype: str
    plain: bool


def read_array_metadata(folder: Path, dimensions: int) -> ArrayMetadata:
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
        raise ValueError(f"{where} is not feature-store metadata: {error!r:.200}") from error
    if not good:
        found = f"{kind!r:.50}, shape {shape!r:.50}, chunks {chunk!r:.50}"
        raise ValueError(f"{where} is not feature-store metadata: an array of {found}")
    return ArrayMetadata(tuple(shape), tuple(chunk), kind, told == PLAIN[kind])


def parse_attributes(raw: bytes, where: str) -> dict[str, Any]:
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
        raise ValueError(f"{where} is not feature-store metadata: format_version is missing")
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
        raise ValueError(f"{where} is not feature-store metadata: {e!r:.200}") from e
    if wrong:
        raise ValueError(f"{where} is not feature-store metadata: {wrong} is {found[wrong]!r:.200}")
    return found


def read_attributes(store: Path) -> dict[str, Any]:
    """The root attributes of a local store; errors as for `parse_attributes`, and OSError."""
    path = store / "zarr.json"
    return parse_attributes(read_regular(path, LARGEST_METADATA), str(path))


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
