"""Read the six emotions of CMU-MOSEI, any number at once: rated from 0 to 3, present above 0.

``label.csv`` is used if it has a column for each emotion, which is rare; otherwise the CMU SDK's
``.csd`` files.
"""

from pathlib import Path

from manifests.adapters import AdapterResult, csd, raw_clips
from manifests.csv_table import read_cells
from manifests.validation import raise_faults

EMOTIONS = csd.MOSEI.columns[1:]


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the table of utterances with one column per emotion, 0 or 1.

    Raises:
        ValueError: a rating is missing or not between 0 and 3, or the files cannot be read.
    """
    path = raw_clips.find_table(source)
    if path is not None and not set(EMOTIONS) <= set(read_cells(path, "cp1252")[0]):
        path = None
    built = raw_clips.read(path, EMOTIONS) if path else csd.read("mosei_emotion", source, EMOTIONS)
    ratings = built.table.reindex(columns=list(EMOTIONS))
    raise_faults(
        [
            f"row {row} (id {built.table.loc[row, 'id']!r}): {emotion} {ratings.loc[row, emotion]} "
            "is not between 0 and 3: take the release's own file"
            for emotion in EMOTIONS
            for row in ratings.index[~ratings[emotion].between(0, 3)]
        ],
        path or source,
    )
    built.table[list(EMOTIONS)] = (ratings > 0).astype(int)
    return built
