"""Videos without labels that a finished run shall judge: a file, a folder or a CSV of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from manifests import Card, Manifest
from manifests.csv_table import numbers, read_cells, require
from manifests.manifest import CONTEXT, FLOATS, INTEGERS, STRINGS, UNIMODAL_LABELS
from manifests.validation import raise_faults

SUFFIXES = (
    *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"),
    *(".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"),
)
"""What is taken of a folder; a file or a row of a CSV may be called anything."""


def read_clips(source: Path, text: str | None, card: Card) -> tuple[Path, Manifest, list[str]]:
    """The clips at ``source`` as a manifest whose labels are empty.

    Args:
        source: a video, a folder of videos (and folders), or a CSV with the column ``video`` and
            where known ``text``, ``id``, ``start``, ``end`` and any other column of a manifest;
            its paths are relative to its own folder.
        text: transcript of the one video.
        card: of the dataset that the run was trained on.

    Returns:
        The folder that the clips' paths are relative to, the clips in the order given, and the
        names of the CSV's columns that are not read.

    Raises:
        ValueError: nothing is there, or the CSV cannot be read; names its row.
    """
    if text is not None and (source.is_dir() or source.suffix.lower() == ".csv"):
        raise ValueError("--text is the transcript of one video: write several into a CSV")
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    data, table = source.parent, pd.DataFrame({"video": [source.name], "text": [text]})
    if source.is_dir():
        found = sorted(
            path
            for path in source.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and path.name[0] != "."
        )
        if not found:
            raise ValueError(f"{source}: no video in this folder (of {', '.join(SUFFIXES)})")
        names = [path.relative_to(source).as_posix() for path in found]
        data, table = source, pd.DataFrame({"video": names})
    elif source.suffix.lower() == ".csv":
        table = _read_csv(source)
    unread = _unread(table, card)
    table = table.assign(split="test", **dict.fromkeys(card.labels))
    for column in ("id", "text"):
        if column not in table:
            table[column] = pd.Series(pd.NA, table.index, dtype="string")
    table["id"] = table["id"].fillna(_names(table["video"]))
    again = table["id"].duplicated()
    if again.any():
        row = table.index[again][0]
        raise ValueError(f"{source}: row {row}: another row has the id {table['id'][row]!r} too")
    return data, Manifest(replace(card, unimodal=False), table, source), unread


def _read_csv(path: Path) -> pd.DataFrame:
    """The cells of a CSV in a manifest's types, an empty one null; the index numbers the rows."""
    cells, _ = read_cells(path)
    require(cells, ["video"], path)
    table = cells.astype("object").where(cells != "", None)
    for column in [name for name in (*FLOATS, *INTEGERS) if name in cells]:
        table[column] = numbers(cells, column, path)
    nothing = pd.Series(np.nan, table.index)
    start = table.get("start", nothing).fillna(0.0)
    end = table.get("end", nothing)
    nameless = table.index[table["video"].isna()]
    faults = [f"row {row}: no video: give its path, or drop the row" for row in nameless]
    faults += [
        f"row {row}: from {start[row]} to {end[row]} s: write seconds of the file, the end after "
        "the start"
        for row in table.index[(start < 0) | (end <= start)]
    ]
    raise_faults(faults, path)
    return table


def _unread(table: pd.DataFrame, card: Card) -> list[str]:
    """Columns that nothing here reads; labels may be there, as in a table that one trains on."""
    known = {"video", *STRINGS, *FLOATS, *INTEGERS, *UNIMODAL_LABELS, CONTEXT}
    known |= {label.lower() for label in card.labels} | {"label"}
    return [name for name in map(str, table) if name not in known]


def _names(video: pd.Series) -> pd.Series:
    """The video's path, numbered where a video has several clips."""
    several = video.duplicated(keep=False)
    number = (video.groupby(video).cumcount() + 1).astype("string")
    return video.where(~several, video + "#" + number)
