"""Read the layout in which CMU-MOSI, CMU-MOSEI and CH-SIMS are shared: one file per clip.

``label.csv`` (or ``meta.csv``) has the columns ``video_id, clip_id, text, label, [label_T, label_A,
label_V,] annotation, mode`` and the clips are ``Raw/<video_id>/<clip_id>.mp4``. An utterance is
called ``<video_id>$_$<clip_id>``, as in the feature files of these releases.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import one_line, repaired
from manifests.csv_table import numbers, read_cells, require
from manifests.printing import preview
from manifests.validation import GARBLED, raise_faults

TABLES = ("label.csv", "meta.csv", "labels.csv")
MODES = {"val": "valid", "dev": "valid"}
TURN = r"\d{1,9}"


def find_table(source: Path) -> Path | None:
    """Return the path of the table of labels in the folder of a release; None: no such file."""
    return next((source / name for name in TABLES if (source / name).is_file()), None)


def read(
    path: Path,
    labels: Sequence[str] = ("label",),
    fallback: str = "cp1252",
    clip_name: Callable[[str, str], str] = lambda video, clip: clip,
) -> AdapterResult:
    """Read the table of utterances, in the order of the file at `path`.

    Duplicate rows (equal in every cell) are used once. Rows are numbered as in the file. Empty
    texts are kept and texts in a wrong encoding are repaired; both are noted.

    Args:
        path: ``label.csv`` or one of the other `TABLES`, next to the folder ``Raw``.
        labels: columns of numbers, in lower case; they are kept unchanged.
        fallback: encoding of a file that is not UTF-8; with cp1252 the texts are Western.
        clip_name: from a row's video and clip to the name of the clip's file without ``.mp4``, for
            releases whose clip numbers lose their zeros in a spreadsheet.

    Raises:
        ValueError: a missing column, a row without ids, or a label that is not a number.
    """
    cells, encoding = read_cells(path, fallback)
    require(cells, ["video_id", "clip_id", "text", "mode", *labels], path)
    nameless = cells.index[(cells["video_id"] == "") | (cells["clip_id"] == "")]
    raise_faults([f"row {row}: no video_id or clip_id: fill it in" for row in nameless], path)
    notes = [] if encoding == "utf-8" else [f"{path.name} is not UTF-8, read as {encoding}"]
    again = cells.duplicated()
    if again.any():
        rows = preview(cells.index[again])
        notes.append(f"{path.name}: {again.sum()} duplicate rows, used once: row {rows}")
        cells = cells[~again]
    texts = _repair(cells["text"], western=fallback == "cp1252")
    for note, affected in (
        ("had a wrong encoding and were repaired", texts.index[texts != cells["text"]]),
        ("are empty: the language model gets empty texts", texts.index[texts == ""]),
    ):
        if len(affected):
            notes.append(f"{path.name}: {len(affected)} texts {note}: row {preview(affected)}")
    video = cells["video_id"]
    clip = pd.Series(map(clip_name, video, cells["clip_id"]), index=cells.index, dtype="object")
    table = pd.DataFrame(
        {
            "id": video + "$_$" + clip,
            "video": "Raw/" + video + "/" + clip + ".mp4",
            "split": cells["mode"].str.lower().replace(MODES),
            "text": texts,
            "dialogue": video,
            "turn": pd.to_numeric(clip.where(clip.str.fullmatch(TURN))),
        }
    )
    for column in labels:
        table[column] = numbers(cells, column, path)
    return AdapterResult(
        table, notes, {"transcripts": False} if (texts == "").any() else {}, file=path
    )


def _repair(texts: pd.Series, western: bool) -> pd.Series:
    """Repair texts of a wrong encoding, word by word; characters that are lost are removed."""
    bad = texts.str.contains(GARBLED)

    def repair(text: str) -> str:
        words = map(repaired, text.split(" ")) if western else text.split(" ")
        return one_line(GARBLED.sub(" ", " ".join(words)))

    return texts.where(~bad, texts[bad].map(repair))
