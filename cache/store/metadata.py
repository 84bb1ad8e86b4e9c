"""Validate untrusted store metadata (``zarr.json``, root attributes) before it is used.

A store may come from another release, or from an attacker. Matching checksums do not make its
metadata valid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cache.store.disk import read_regular
from cache.store.recipe import (
    FORMAT_VERSION,
    MODALITIES,
    NAMES_ONLY,
    STORABLE,
    Recipe,
    check_place,
)

STATUSES = ("ok", "no_audio", "no_video", "failed")
CROP = ("crop_x", "crop_y", "crop_w", "crop_h")
COLUMNS = {
    **dict.fromkeys(("id", "status", "error"), "string"),
    "duration": "float64",
    "source_sha256": "string",
    "source_bytes": "int64",
    **dict.fromkeys(("start", "end", *CROP), "float64"),
}
"""Columns of the utterance table and their types; ``status`` has one of `STATUSES`."""

LARGEST_METADATA = 16 << 20
"""Maximum size of a ``zarr.json`` in bytes."""

_LARGEST_PARSED = 400 << 20
"""Maximum size of parsed JSON in bytes: a list of checksums of half a million files."""

_LITTLE = [{"name": "bytes", "configuration": {"endian": "little"}}]
PLAIN = {
    **dict.fromkeys(("float16", "float32", "float64", "int64"), _LITTLE),
    "string": [{"name": "vlen-utf8"}],
}
"""The data types of a store's arrays, each with the codecs of an uncompressed array."""


class NewerFormatError(ValueError):
    """A store has a newer format than this release can read."""


def parse_json(raw: bytes, where: str) -> Any:
    """Parse JSON; ``where`` is named in errors.

    Raises:
        ValueError: it is not valid JSON, nested too deeply, or takes too much memory.
    """
    # A byte of JSON may become 80 bytes of objects; an object has a comma, a bracket or quotes.
    text = len(raw) * (2 if raw.isascii() else 8)
    objects = 240 * raw.count(b"{") + 64 * raw.count(b"[")
    objects += 28 * raw.count(b'"') + 40 * raw.count(b",")
    if text + objects > _LARGEST_PARSED:
        raise ValueError(
            f"{where} has {len(raw) / 1e6:.0f} MB and would take {(text + objects) / 1e6:.0f} MB "
            "of memory; nothing that a store needs is that large"
        )
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def is_count(value: Any) -> bool:
    """Whether a value is a valid number of bytes, files or rows: an int from 0 to below 2^63."""
    return type(value) is int and 0 <= value < 2**63


def is_sha256(value: Any) -> bool:
    """Whether a value is a SHA-256 of 64 lower-case hex digits."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


class ArrayMetadata(NamedTuple):
    """The metadata of one array, from its ``zarr.json``.

    Attributes:
        shape: shape of the array.
        chunk: shape of a chunk.
        dtype: one of `PLAIN`.
        plain: whether the array is neither compressed nor sharded.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    plain: bool


def read_array_metadata(folder: Path, dimensions: int) -> ArrayMetadata:
    """Read the metadata of an array.

    Args:
        folder: the array's folder.
        dimensions: its expected number of dimensions.

    Raises:
        ValueError: the metadata is invalid.
        OSError: it cannot be read.
    """
    where = folder / "zarr.json"
    meta = parse_json(read_regular(where, LARGEST_METADATA), str(where))
    try:
        shape, chunk = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        kind, codecs = meta["data_type"], meta["codecs"]
        good = len(shape) == len(chunk) == dimensions and kind in PLAIN and codecs
        good = good and all(map(is_count, (*shape, *chunk))) and 0 not in chunk
        # Depending on the release, Zarr writes an empty configuration or omits it.
        without_empty = [{key: value for key, value in codec.items() if value} for codec in codecs]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is not feature-store metadata: {error!r:.200}") from error
    if not good:
        found = f"{kind!r:.50}, shape {shape!r:.50}, chunks {chunk!r:.50}"
        raise ValueError(f"{where} is not feature-store metadata: an array of {found}")
    return ArrayMetadata(tuple(shape), tuple(chunk), kind, without_empty == PLAIN[kind])


def parse_attributes(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a store's root ``zarr.json`` and validate the attributes that a reader uses.

    Args:
        raw: the bytes of ``zarr.json``.
        where: named in errors.

    Raises:
        NewerFormatError: the store has a newer format.
        ValueError: these are not the attributes of a feature store, or they are inconsistent.
    """
    root = parse_json(raw, where)
    found = root.get("attributes") if isinstance(root, dict) else None
    if not isinstance(found, dict) or type(found.get("format_version")) is not int:
        raise ValueError(f"{where} is not feature-store metadata: format_version is missing")
    version = found["format_version"]
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{where} has format version {version}, this release reads {FORMAT_VERSION}; "
            "install a newer release, or extract again"
        )
    try:
        wrong = "format_version" if version < NAMES_ONLY else _invalid_attribute(found)
        json.dumps(found, ensure_ascii=False).encode()  # no lone surrogate
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(f"{where} is not feature-store metadata: {e!r:.200}") from e
    if wrong:
        raise ValueError(
            f"{where} is not feature-store metadata: {wrong} is {found.get(wrong)!r:.200}"
        )
    return found


def is_feature_file(name: str) -> bool:
    """Whether a file of a store, by its path in the store, holds features: all others are small."""
    return name.startswith(tuple(f"{modality}/values/c/" for modality in STORABLE))


def segments_of(attributes: Mapping[str, Any]) -> str | None:
    """The digest of a store's segments by name (`digest_of_segments`); None if it is unknown."""
    if "imported" in attributes:
        return None
    if attributes["format_version"] == NAMES_ONLY:
        return str(attributes["recipe"]["utterances"])
    return attributes.get("segments")


def columns_of(attributes: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a store's utterance table; format version 1 has no sources."""
    first = len(COLUMNS) if attributes["format_version"] != NAMES_ONLY else 4
    return dict(list(COLUMNS.items())[:first])


def read_attributes(store: Path) -> dict[str, Any]:
    """Read the root attributes of a local store; errors as for `parse_attributes`, and OSError."""
    path = store / "zarr.json"
    return parse_attributes(read_regular(path, LARGEST_METADATA), str(path))


def _invalid_attribute(found: Mapping[str, Any]) -> str:
    """Name the first root attribute that is invalid; empty if all are valid."""
    recipe, widths, counts = Recipe.of_store(found), found["widths"], found["counts"]
    if found["digest"] != recipe.digest or found["recipe"] != recipe.as_dict():
        return "digest"
    check_place(recipe.dataset, recipe.store_name)
    if not is_sha256(segments_of(found) or "0" * 64):
        return "segments"
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
