"""Read the videos to predict, from a file, a folder or a CSV, as a manifest without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from manifests import Card, Manifest
from manifests.card import UNIMODAL_LABELS
from manifests.csv_table import numbers, read_cells, require
from manifests.manifest import CONTEXT, FLOATS, INTEGERS, STRINGS
from manifests.validation import raise_faults
from train.predict.inputs import check_clips

SUFFIXES = (
    *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"),
    *(".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"),
)
"""The videos and sounds of a folder; a single file or a row of a CSV may have any suffix."""


def read_clips(source: Path, text: str | None, card: Card) -> tuple[Path, Manifest, list[str]]:
    """Read the clips at ``source`` as a manifest with empty labels.

    Args:
        source: a video, a folder of videos (searched recursively), or a CSV with the column
            ``video`` and, where known, ``text``, ``id``, ``start``, ``end`` (seconds) and any
            other column of a manifest; its paths are relative to the CSV's folder.
        text: transcript of a single video.
        card: the card of the dataset that the run was trained on.

    Returns:
        The folder that the clips' paths are relative to, the clips in the order given, and the
        names of the CSV's columns that are not read.

    Raises:
        ValueError: ``source`` does not exist, or the CSV is invalid; names the row.
    """
    check_clips(source, text)
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
    table["id"] = table["id"].fillna(_default_ids(table["video"]))
    duplicated = table["id"].duplicated()
    if duplicated.any():
        row = table.index[duplicated][0]
        raise ValueError(f"{source}: row {row}: another row also has the id {table['id'][row]!r}")
    return data, Manifest(replace(card, unimodal=False), table, source), unread


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV with a manifest's types; empty cells are null, the index is the row number."""
    cells, _ = read_cells(path)
    require(cells, ["video"], path)
    table = cells.astype("object").where(cells != "", None)
    for column in [name for name in (*FLOATS, *INTEGERS) if name in cells]:
        table[column] = numbers(cells, column, path)
    absent = pd.Series(np.nan, table.index)
    start = table.get("start", absent).fillna(0.0)
    end = table.get("end", absent)
    without_video = table.index[table["video"].isna()]
    faults = [f"row {row}: no video: give its path, or remove the row" for row in without_video]
    faults += [
        f"row {row}: from {start[row]} to {end[row]} s: write seconds of the file, the end after "
        "the start"
        for row in table.index[(start < 0) | (end <= start)]
    ]
    raise_faults(faults, path)
    return table


def _unread(table: pd.DataFrame, card: Card) -> list[str]:
    """Return the columns that are ignored; labels are allowed, as in a training table."""
    known = {"video", *STRINGS, *FLOATS, *INTEGERS, *UNIMODAL_LABELS, CONTEXT}
    known |= {label.lower() for label in card.labels} | {"label"}
    return [name for name in map(str, table) if name not in known]


def _default_ids(video: pd.Series) -> pd.Series:
    """Return the videos' paths, numbered where a video has several clips."""
    several = video.duplicated(keep=False)
    number = (video.groupby(video).cumcount() + 1).astype("string")
    return video.where(~several, video + "#" + number)
