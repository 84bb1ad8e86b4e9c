"""Videos without labels that a finished run shall judge: a file, a folder or a CSV of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from manifests import Card, Manifest

SUFFIXES = (
    *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"),
    *(".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"),
)
"""What is taken of a folder; a file or a row of a CSV may be called anything."""


def read_clips(source: Path, text: str | None, card: Card) -> tuple[Path, Manifest]:
    """The clips at ``source`` as a manifest whose labels are empty.

    Args:
        source: a video, a folder of videos (and folders), or a CSV with the column ``video`` and
            where known ``text``, ``id``, ``start``, ``end`` and any other column of a manifest;
            its paths are relative to its own folder.
        text: transcript of the one video.
        card: of the dataset that the run was trained on.

    Returns:
        The folder that the clips' paths are relative to, and the clips in the order given.

    Raises:
        ValueError: nothing is there, or a row of the CSV makes no sense.
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
    table = table.assign(split="test", **dict.fromkeys(card.labels))
    for column in ("id", "text"):
        if column not in table:
            table[column] = pd.Series(pd.NA, table.index, dtype="string")
    table["id"] = table["id"].fillna(_names(table["video"]))
    again = table["id"].duplicated()
    if again.any():
        raise ValueError(f"{source}: two rows have the id {table['id'][again].iloc[0]!r}")
    return data, Manifest(replace(card, unimodal=False), table, source)


def _read_csv(path: Path) -> pd.DataFrame:
    try:  # "NA" and "None" are things that people say
        table = pd.read_csv(path, dtype="string", keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV in UTF-8: {error}") from error
    if not isinstance(table.index, pd.RangeIndex):  # what is too much became an index
        raise ValueError(
            f"{path}: a row has more fields than the first line: put a text with a comma in quotes"
        )
    if "video" not in table or table.empty:
        raise ValueError(f"{path}: needs a first line with `video`, and a row for each clip")
    if table["video"].isna().any():
        raise ValueError(f"{path}: row {int(table['video'].isna().argmax()) + 1} has no video")
    for column in ("start", "end"):
        if column in table:
            table[column] = _seconds(path, table[column])
    if "end" in table:
        start = table["start"].fillna(0.0) if "start" in table else 0.0
        empty = table["end"] <= start
        if empty.any():
            raise ValueError(f"{path}: row {int(empty.argmax()) + 1} ends before it starts")
    return table


def _names(video: pd.Series) -> pd.Series:
    """The video's path, numbered where a video has several clips."""
    several = video.duplicated(keep=False)
    number = (video.groupby(video).cumcount() + 1).astype("string")
    return video.where(~several, video + "#" + number)


def _seconds(path: Path, column: pd.Series) -> pd.Series:
    seconds = pd.to_numeric(column, errors="coerce").astype("float64")
    wrong = (seconds.isna() & column.notna()) | (seconds < 0) | np.isinf(seconds)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}: row {row + 1}: {column.name} is {column.iloc[row]!r}, not seconds"
        )
    return seconds
