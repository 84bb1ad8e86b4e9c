"""Read RAVDESS: 24 actors speak two sentences in eight emotions, each twice.

The official layout, ``Actor_XX/<name>.mp4``, is read at any depth. A name has seven two-digit
numbers: modality, channel, emotion, intensity, statement, repetition, actor. Only speech with sound
and picture is used: the release also has a silent copy of every clip and a sung part. The labels
are only in the names; without videos the names of the whole release are used, 60 per actor.
"""

import re
from collections import Counter
from itertools import product
from pathlib import Path, PurePosixPath

import pandas as pd

from manifests.adapters import AdapterResult
from manifests.card import Card
from manifests.printing import preview

NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(0[1-9]|1\d|2[0-4])")
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door", "Dogs are sitting by the door")

# Odd actors are men, even ones women: valid and test have the same number of each.
TEST_ACTORS = {5, 10, 17, 22}
VALID_ACTORS = {11, 24}
TURNS = ("train", "valid", "test", "train", "train")

BY_ACTOR = "by actor: 5, 10, 17, 22 test; 11, 24 valid; the others train"
BY_RANK = "by actor: the highest number test, the one below valid, the others train"
BY_REPETITION = (
    "by repetition, too few actors to split by them: the second is test, the first is train but "
    "for one clip of each emotion, which is valid; an emotion without a first repetition "
    "gives its first clip to train"
)
BY_TURNS = "by turns (train, valid, test, train, train) over the sorted names, too few clips"


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the table of the speech clips below `source`, without `media` of the whole release.

    Raises:
        ValueError: fewer than three clips, which cannot fill three splits.
    """
    rows: list[dict[str, object]] = []
    skipped: Counter[str] = Counter()
    malformed = []
    for path in _files_below(source) if media else _whole_release():
        fields = NAME.fullmatch(path.stem)
        if fields is None:
            malformed.append(path.as_posix())
            continue
        modality, channel, emotion, intensity, statement, repetition, actor = map(
            int, fields.groups()
        )
        if modality != 1:
            skipped["without sound" if modality == 2 else "without picture"] += 1
        elif channel != 1:
            skipped["sung"] += 1
        else:
            rows.append(
                {
                    "id": path.stem,
                    "video": path.as_posix(),
                    "text": STATEMENTS[statement - 1],
                    "speaker": f"actor_{actor:02d}",
                    "label": EMOTIONS[emotion - 1],
                    "intensity": ("normal", "strong")[intensity - 1],
                    "repetition": repetition,
                }
            )
    notes = [f"skipped {count} files {reason}" for reason, count in sorted(skipped.items())]
    if malformed:
        notes.append(f"skipped files without a RAVDESS name: {preview(malformed)}")
    if len(rows) < 3:
        # Too few for three splits; usually none: the wrong folder.
        raise ValueError(
            f"{source}: {len(rows)} RAVDESS speech clips with sound and picture, at least three "
            f"are needed. {'; '.join(notes)}. To obtain it: {Card.builtin('ravdess').obtain}"
        )
    table = pd.DataFrame(rows).sort_values("id", ignore_index=True)
    table["split"], rule, disjoint = _split(table)
    notes.append(f"split {rule}")
    return AdapterResult(table, notes, {"split_rule": rule, "disjoint": disjoint})


def _files_below(source: Path) -> list[PurePosixPath]:
    clips = (p for p in source.rglob("*") if p.suffix.lower() in {".mp4", ".wav"})
    return sorted(PurePosixPath(clip.relative_to(source).as_posix()) for clip in clips)


def _whole_release() -> list[PurePosixPath]:
    """Return the names of all speech clips; a neutral voice has no strong intensity."""
    cells = product(range(1, 25), range(1, 9), (1, 2), (1, 2), (1, 2))
    return [
        PurePosixPath(f"Actor_{a:02d}/01-01-{e:02d}-{i:02d}-{s:02d}-{r:02d}-{a:02d}.mp4")
        for a, e, i, s, r in cells
        if (e, i) != (1, 2)
    ]


def _split(table: pd.DataFrame) -> tuple[list[str], str, list[str]]:
    """Return the split of each row, the rule in words, and the columns that are disjoint.

    The first rule that leaves no split empty is used, so the same clips always get the same
    splits: by the actors' numbers, by their rank, by repetition, by turns.
    """
    actor = table["speaker"].str.removeprefix("actor_").astype(int)
    ranked = sorted(set(actor))
    rules: tuple[tuple[str, list[str], list[str]], ...] = (
        (BY_ACTOR, ["speaker"], [_of(a, VALID_ACTORS, TEST_ACTORS) for a in actor]),
        (BY_RANK, ["speaker"], [_of(a, {*ranked[-2:-1]}, {*ranked[-1:]}) for a in actor]),
        (BY_REPETITION, [], _by_repetition(table)),
    )
    for rule, disjoint, splits in rules:
        if len(set(splits)) == 3:
            return splits, rule, disjoint
    return [TURNS[i % len(TURNS)] for i in range(len(table))], BY_TURNS, []


def _of(actor: int, valid: set[int], test: set[int]) -> str:
    return "test" if actor in test else "valid" if actor in valid else "train"


def _by_repetition(table: pd.DataFrame) -> list[str]:
    splits = pd.Series("train", index=table.index)
    splits[table["repetition"] == 2] = "test"
    for emotion, clips in table.groupby("label"):
        first = clips.index[clips["repetition"] == 1]
        if len(first) == 0:
            splits[clips.index[0]] = "train"
        elif len(first) > 1:  # a class needs a training clip first
            # A different statement and intensity for each emotion.
            splits[first[EMOTIONS.index(str(emotion)) % len(first)]] = "valid"
    return splits.tolist()
