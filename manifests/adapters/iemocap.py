"""Read IEMOCAP: five sessions of an actress and an actor, improvising and playing scripts.

In ``Session1`` to ``Session5``, times and labels are read from ``dialog/EmoEvaluation`` and words
from ``dialog/transcriptions``. The video of the whole dialogue, ``dialog/avi/DivX``, shows both
speakers side by side and is cut by time and by half. A dialogue ``Ses01F_...`` was recorded with
motion-capture markers on the actress (F); the speaker with the markers is on the left.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import one_line, read_text
from manifests.card import Card

EVALUATION = "Session[1-5]/dialog/EmoEvaluation/Ses*.txt"
TEST_SESSION = "5"
VALID_EVERY, VALID_FROM = 11, 5
"""Of the other sessions' sorted dialogues the sixth and every eleventh after it are valid."""

NUMBER = r"(\d+(?:\.\d+)?)"
TURN = re.compile(
    rf"\[{NUMBER} - {NUMBER}\]\s+(\S+)\s+(\w+)\s+\[{NUMBER}, {NUMBER}, {NUMBER}\]\s*", re.ASCII
)
NAME = re.compile(r"(Ses0([1-5])([FM])_\w+)_([FM])\w+", re.ASCII)
SAID = re.compile(r"(\S+)\s+\[[\d.]+-[\d.]+\]:(.*)", re.ASCII)


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read the utterances of the six classes, in the order of their times.

    The turns count all utterances of a dialogue, also those of other classes or without a class.
    Valence, activation and dominance (1 to 5) are kept in columns of these names.

    Raises:
        ValueError: no evaluation was found, or one cannot be read.
    """
    paths = sorted(source.glob(EVALUATION)) or sorted(source.glob(f"*/{EVALUATION}"))
    if not paths:
        raise ValueError(
            f"{source / EVALUATION}: no such file; to obtain it: {Card.builtin('iemocap').obtain}"
        )
    table = pd.DataFrame([row for path in paths for row in _dialogue(path, source)])
    table["split"] = table["dialogue"].map(_splits([path.stem for path in paths]))
    of_class = table["label"].isin(Card.builtin("iemocap").classes)
    silent = of_class & (table["text"] == "")
    notes = [f"excluded {(~of_class).sum()} of {len(table)} utterances, of no or another class"]
    if silent.any():
        names = ", ".join(table.loc[silent, "id"])
        notes.append(f"excluded {silent.sum()} utterances without a transcript: {names}")
    return AdapterResult(table[of_class & ~silent].reset_index(drop=True), notes)


def _dialogue(path: Path, source: Path) -> Iterator[dict[str, object]]:
    """Yield the rows of one file of evaluations."""
    dialog = path.parents[1]
    words = _transcript(dialog / "transcriptions" / path.name)
    video = (dialog / "avi" / "DivX" / f"{path.stem}.avi").relative_to(source).as_posix()
    turns = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.startswith("["):
            continue  # the header, blank lines and the ratings of each annotator
        turn = TURN.fullmatch(line)
        name = NAME.fullmatch(turn[3]) if turn else None
        if turn is None or name is None or name[1] != path.stem:
            raise ValueError(f"{path}: row {number}: {line!r} is not an evaluation of {path.stem}")
        turns.append((float(turn[1]), turn, name))
    for place, (start, turn, name) in enumerate(sorted(turns, key=lambda each: each[0])):
        _, session, wears_markers, speaks = name.groups()
        yield {
            "id": turn[3],
            "video": video,
            "start": start,
            "end": float(turn[2]),
            "crop_x": 0.0 if speaks == wears_markers else 0.5,
            "crop_y": 0.0,
            "crop_w": 0.5,
            "crop_h": 1.0,
            "text": words.get(turn[3], ""),
            "speaker": f"Ses0{session}{speaks}",
            "dialogue": path.stem,
            "turn": place,
            "label": turn[4],
            "valence": float(turn[5]),
            "activation": float(turn[6]),
            "dominance": float(turn[7]),
        }


def _transcript(path: Path) -> dict[str, str]:
    """Return the words of each utterance; interjections without a name are skipped."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it has the words of its dialogue: unpack it too")
    lines = map(SAID.fullmatch, read_text(path).splitlines())
    return {line[1]: one_line(line[2]) for line in lines if line}


def _splits(dialogues: list[str]) -> dict[str, str]:
    test = {name for name in dialogues if name[4] == TEST_SESSION}
    others = sorted(set(dialogues) - test)
    valid = set(others[VALID_FROM::VALID_EVERY])
    return {n: "test" if n in test else "valid" if n in valid else "train" for n in dialogues}
