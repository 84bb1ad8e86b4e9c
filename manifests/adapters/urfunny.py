"""UR-FUNNY, version 2: passages of TED talks whose last sentence makes people laugh, or not.

Reads the pickled tables of the authors' "extracted features", of which only text, labels and folds
are needed; the clips are ``urfunny2_videos/<id>.mp4``. A clip shows a whole passage; the text is
its last sentence, the punchline, and the context is what leads up to it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import find_file, find_folder, one_line, repaired
from manifests.adapters.pickles import load_pickle
from manifests.card import Card
from manifests.validation import raise_faults

CLASSES = ("serious", "humorous")
FOLDS = {"train": "train", "dev": "valid", "test": "test"}


def build(source: Path, media: bool = True) -> AdapterResult:
    """One row for every id of the folds, in their order.

    Raises:
        ValueError: a table is missing, names anything but data, or lacks an id of the folds.
    """
    sentences, labels, folds = (
        _table(source, name) for name in ("language_sdk", "humor_label_sdk", "data_folds")
    )
    place = find_folder(source, "urfunny2_videos")
    faults: list[str] = []
    rows, silent = [], []
    for key, split in _members(folds, faults):
        entry, label = sentences.get(key), labels.get(key)
        if not isinstance(entry, dict) or "punchline_sentence" not in entry:
            faults.append(f"id {key}: no punchline_sentence in language_sdk.pkl")
        elif label not in (0, 1):
            faults.append(f"id {key}: {label!r} in humor_label_sdk.pkl, it must be 0 or 1")
        elif not (text := _sentence(entry["punchline_sentence"])):
            silent.append(str(key))
        else:
            context = [_sentence(each) for each in entry.get("context_sentences", ())]
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
    notes = [f"left out, its punchline is empty: {key}" for key in silent]
    return AdapterResult(pd.DataFrame(rows), notes)


def _table(source: Path, name: str) -> dict[Any, Any]:
    path = find_file(source, f"{name}.pkl", Card.builtin("urfunny").obtain)
    table = load_pickle(path)
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds a {type(table).__name__}, not a table by id")
    return table


def _members(folds: dict[Any, Any], faults: list[str]) -> Iterator[tuple[Any, str]]:
    for fold, split in FOLDS.items():
        if not isinstance(folds.get(fold), list | tuple):
            faults.append(f"data_folds.pkl has no list called {fold!r}")
            continue
        yield from ((key, split) for key in folds[fold])


def _sentence(words: Any) -> str:
    """One sentence, which is text or a list of words."""
    text = " ".join(map(str, words)) if isinstance(words, list | tuple) else str(words)
    return one_line(repaired(text))
