"""What comes from elsewhere, looked at before anything is done with it.

A store, the list of its files and a catalogue were written by somebody else, another release or
nobody who means well. What the checksums approve may still be no store that can be read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cache.parts import STATUSES
from cache.recipe import (
    FORMAT_VERSION,
    MODALITIES,
    STORABLE,
    Recipe,
    digest_of,
    refuse_as_place,
    store_name,
)

COLUMNS = ("id", "status", "error", "duration")
"""The table of utterances."""


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
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        raise ValueError(f"{where} is none of a feature store: {e!r}") from e
    if wrong:
        raise ValueError(f"{where} is none of a feature store: {wrong} is {found[wrong]!r:.200}")
    return found


def refuse_other_place(attributes: Mapping[str, Any], dataset: str, name: str) -> None:
    """Refuse a store that is called otherwise than its recipe says.

    Raises:
        ValueError: it is; the dataset in its recipe cannot even be a folder, or is another one.
    """
    recipe = attributes["recipe"]
    own = store_name(recipe["encoder"], recipe["sampling"], attributes["digest"])
    refuse_as_place(recipe["dataset"], own)
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
    found = attributes_of((folder / "zarr.json").read_bytes(), str(folder / "zarr.json"))
    count = found["counts"]["utterances"]
    shapes: dict[str, list[int]] = {f"utterances/{name}": [count] for name in COLUMNS}
    for modality, width in found["widths"].items():
        shapes[f"{modality}/values"] = [found["counts"][f"{modality}_frames"], width]
        shapes[f"{modality}/offsets"] = [count + 1]
    for group in (*found["widths"], "utterances"):
        yield f"{group}/zarr.json"
    for array, shape in shapes.items():
        yield f"{array}/zarr.json"
        where = folder / array / "zarr.json"
        meta = parse_json(where.read_bytes(), str(where))
        try:
            steps = meta["chunk_grid"]["configuration"]["chunk_shape"]
            good = meta["shape"] == shape and len(steps) == len(shape)
            if not good or not all(is_count(step) and step for step in steps):
                raise ValueError(f"an array of shape {shape} was expected")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} is none of a feature store: {error!r}") from error
        chunks = [-(-size // step) for size, step in zip(shape, steps, strict=True)]
        yield from _keys(f"{array}/c", chunks)


def _keys(path: str, counts: list[int]) -> Iterator[str]:
    """The files of an array's chunks, one at a time: there may be said to be any number."""
    if not counts:
        yield path
        return
    for index in range(counts[0]):
        yield from _keys(f"{path}/{index}", counts[1:])
