"""Read MELD: emotions in dialogues of the series Friends, one clip per utterance.

The folder ``MELD.Raw`` with its archives unpacked has one CSV file and one folder of clips per
split, each at any depth. Dialogues are numbered from 0 in every split, so an id begins with the
split.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import find_file, find_folder, one_line, repaired
from manifests.card import Card
from manifests.csv_table import numbers, read_cells, require
from manifests.validation import raise_faults

PARTS = (
    ("train", "train", "train_splits"),
    ("valid", "dev", "dev_splits_complete"),
    ("test", "test", "output_repeated_splits_test"),
)
AGAIN = "final_videos_test"
"""The prefix of some clips of the test split; most of them also exist without it."""
TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
COUNTS = ["dialogue_id", "utterance_id", "season", "episode"]
COLUMNS = ["utterance", "speaker", "emotion", "sentiment", *COUNTS, "starttime", "endtime"]


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the rows of the three CSV files; clips are whole files, so no row has a start or end.

    Times in the episode are kept in ``episode_start`` and ``episode_end``, in seconds.

    Raises:
        ValueError: a CSV file is missing, or a cell that must be a number or a time is not.
    """
    built = [_read(source, *part) for part in PARTS]
    return AdapterResult(
        pd.concat([part.table for part in built]),
        [note for part in built for note in part.notes],
    )


def _read(source: Path, split: str, name: str, folder: str) -> AdapterResult:
    path = find_file(source, f"{name}_sent_emo.csv", Card.builtin("meld").obtain)
    cells, _ = read_cells(path, fallback="cp1252")
    require(cells, COLUMNS, path)
    cells = cells.map(repaired).map(one_line)
    counts = pd.DataFrame({column: numbers(cells, column, path) for column in COUNTS})
    raise_faults(
        [
            f"row {row}: {', '.join(COUNTS)} must be whole numbers: {values.tolist()}"
            for row, values in counts[(counts % 1 != 0).any(axis=1)].iterrows()
        ],
        path,
    )
    counts = counts.astype(int)
    dialogue, turn = counts["dialogue_id"], counts["utterance_id"]
    clips = "dia" + dialogue.astype(str) + "_utt" + turn.astype(str)
    place = find_folder(source, folder)
    table = pd.DataFrame(
        {
            "id": f"{name}_" + clips,
            "video": [_clip(source, place, clip) for clip in clips],
            "split": split,
            "text": cells["utterance"],
            "speaker": cells["speaker"],
            "dialogue": f"{name}_dia" + dialogue.astype(str),
            "turn": turn,
            "label": cells["emotion"].str.lower(),
            "sentiment": cells["sentiment"].str.lower(),
            "season": counts["season"],
            "episode": counts["episode"],
            "episode_start": _seconds(cells["starttime"], path),
            "episode_end": _seconds(cells["endtime"], path),
        }
    )
    table.index = pd.Index([f"{path.relative_to(source)}: row {row}" for row in table.index])
    again = len(list((source / place).glob(f"{AGAIN}dia*.mp4")))
    instead = int(table["video"].str.contains(AGAIN).sum())
    notes = [f"{name}: {table['dialogue'].nunique()} dialogues"]
    if again:
        notes.append(
            f"{name}: {again} clips are called {AGAIN}...; {instead} of them are used, those "
            "that do not exist under the plain name"
        )
    return AdapterResult(table, notes)


def _clip(source: Path, place: str, clip: str) -> str:
    plain, again = f"{place}/{clip}.mp4", f"{place}/{AGAIN}{clip}.mp4"
    return again if not (source / plain).is_file() and (source / again).is_file() else plain


def _seconds(times: pd.Series, path: Path) -> pd.Series:
    """Convert ``00:16:16,059`` to seconds; an empty cell is NaN."""
    parts = times.str.extract(f"^{TIME.pattern}$")
    bad = (times != "") & parts[0].isna()
    raise_faults(
        [
            f"row {row}: {time!r} is not a time: write 00:16:16,059"
            for row, time in times[bad].items()
        ],
        path,
    )
    hours, minutes, seconds = (parts[i].astype(np.float64) for i in range(3))
    return (hours * 60 + minutes) * 60 + seconds + ("0." + parts[3]).astype(np.float64)
