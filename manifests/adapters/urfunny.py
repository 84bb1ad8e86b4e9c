"""Read UR-FUNNY, version 2: passages of TED talks whose last sentence is humorous or serious.

Of the authors' "extracted features", only the pickled tables of text, labels and folds are needed;
the clips are ``urfunny2_videos/<id>.mp4``. A clip shows a whole passage; the text is its last
sentence, the punchline, and the context is the sentences before it.
"""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import find_file, find_folder, one_line, read_pickle, repaired
from manifests.card import Card
from manifests.validation import raise_faults

CLASSES = ("serious", "humorous")
FOLDS = {"train": "train", "dev": "valid", "test": "test"}


def build(source: Path, media: bool = True) -> AdapterResult:
    """Read one row for every id of the folds, in their order.

    Raises:
        ValueError: a table is missing, references something other than data, or lacks an id of the
            folds.
    """
    sentences, labels, folds = (
        _table(source, name) for name in ("language_sdk", "humor_label_sdk", "data_folds")
    )
    place = find_folder(source, "urfunny2_videos")
    faults: list[str] = []
    rows, silent = [], []
    for key, split in _members(folds, faults):
        entry, label = sentences.get(key), _plain(labels.get(key))
        if not isinstance(entry, dict) or "punchline_sentence" not in entry:
            faults.append(f"id {key}: no punchline_sentence in language_sdk.pkl")
            continue
        if label not in (0, 1):
            shown = reprlib.repr(label)
            faults.append(f"id {key}: {shown} in humor_label_sdk.pkl, it must be 0 or 1")
            continue
        try:
            text = _sentence(entry["punchline_sentence"])
            context = [_sentence(each) for each in _plain(entry.get("context_sentences", ()))]
        except TypeError as error:
            faults.append(f"id {key}: a sentence in language_sdk.pkl is not text: {error}")
            continue
        if not text:
            silent.append(str(key))
        else:
            rows.append(
                {
                    "id": str(key),
                    "video": f"{place}/{key}.mp4",
                    "split": split,
                    "text": text,
                    "context": "\n".join(filter(None, context)) or None,
                    "label": CLASSES[int(label)],
                }
            )
    raise_faults(faults, source)
    notes = [f"excluded, its punchline is empty: {key}" for key in silent]
    return AdapterResult(pd.DataFrame(rows), notes)


def _table(source: Path, name: str) -> dict[Any, Any]:
    path = find_file(source, f"{name}.pkl", Card.builtin("urfunny").obtain)
    table = read_pickle(path)
    if not isinstance(table, dict):
        raise ValueError(f"{path} contains a {type(table).__name__}, not a table by id")
    return table


def _members(folds: dict[Any, Any], faults: list[str]) -> Iterator[tuple[Any, str]]:
    for fold, split in FOLDS.items():
        keys = _plain(folds.get(fold))
        if not isinstance(keys, list | tuple):
            faults.append(f"data_folds.pkl has no list called {fold!r}")
            continue
        for key in map(_plain, keys):
            if isinstance(key, int | str):
                yield key, split
            else:
                faults.append(f"{reprlib.repr(key)} in data_folds.pkl is not an id")


def _sentence(words: Any) -> str:
    """Join a sentence, which is text or a list of words; raise a TypeError for anything else."""
    words = _plain(words)
    words = words if isinstance(words, list | tuple) else [words]
    for word in words:
        if not isinstance(word, str | int | float):
            raise TypeError(reprlib.repr(word))
    return one_line(repaired(" ".join(map(str, words))))


def _plain(value: Any) -> Any:
    """Convert a numpy array to lists and a numpy scalar to Python's number."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
