"""Read MUStARD: sarcasm in television series, each utterance with the conversation before it.

The table is ``sarcasm_data.json``; the clips are ``utterances_final/<id>.mp4`` and, of the
conversation before, ``context_final/<id>_c.mp4``. The release has five folds and the test set of
its speaker-independent setting instead of splits, so it can be split in several ways.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from manifests.adapters import AdapterResult
from manifests.adapters.files import find_file, find_folder, one_line, read_pickle, read_text
from manifests.card import Card
from manifests.validation import raise_faults

CLASSES = ("sincere", "sarcastic")
TEST_SHOW = "FRIENDS"
FOLDS = 5
VARIANTS = {
    "paper": "554/68/68, the classes equal in each; seeded, for the paper does not list its ids",
    **{f"fold{i}": f"tested on fold {i} of five" for i in range(1, FOLDS + 1)},
    "speaker-independent": f"tested on {TEST_SHOW}, whose characters are in no other split",
}


def build(source: Path, media: bool = True, variant: str = "paper") -> AdapterResult:
    """Read the rows of the JSON file, in its order, split by `variant`.

    Raises:
        ValueError: the file is missing, or a value of an entry is missing or has another type.
    """
    path = find_file(source, "sarcasm_data.json", Card.builtin("mustard").obtain)
    try:
        entries = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}: download it again") from error
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ValueError(f"{path}: it must map ids to entries: download it again")
    utterances, contexts = (
        find_folder(source, name) for name in ("utterances_final", "context_final")
    )
    raise_faults([fault for name, entry in entries.items() for fault in _faults(name, entry)], path)
    table = pd.DataFrame(
        {
            "id": name,
            "video": f"{utterances}/{name}.mp4",
            "text": one_line(entry["utterance"]),
            "speaker": entry["speaker"],
            "context": "\n".join(map(one_line, entry["context"])) or None,
            "context_speakers": "\n".join(map(one_line, entry["context_speakers"])) or None,
            "context_video": f"{contexts}/{name}_c.mp4",
            "show": entry.get("show"),
            "label": CLASSES[entry["sarcasm"]],
        }
        for name, entry in entries.items()
    )
    table["split"], rule = _split(table, variant, source)
    return AdapterResult(table, [f"split {rule}"], {"split_rule": rule, "splits": _counts(variant)})


def _faults(name: str, entry: dict[str, Any]) -> list[str]:
    kinds = {"utterance": str, "speaker": str, "sarcasm": bool}
    kinds |= {"context": list, "context_speakers": list}
    return [
        f"id {name!r}: {key} is {entry.get(key)!r}, it must be a {kind.__name__}"
        for key, kind in kinds.items()
        if not isinstance(entry.get(key), kind)
    ]


def _split(table: pd.DataFrame, variant: str, source: Path) -> tuple[pd.Series, str]:
    """Return the split of each row, and the rule in words."""
    tenth = 0.1
    if variant == "paper":
        test, tenth = _drawn(table, 68 / 690), 68 / (690 - 68)
        rule = "68 of 690 test"
    elif variant == "speaker-independent":
        if table["show"].isna().any():
            raise ValueError(
                "sarcasm_data.json does not name the shows, by which the variant "
                f"{variant} splits: take a newer file; {Card.builtin('mustard').obtain}"
            )
        test = set(table.loc[table["show"] == TEST_SHOW, "id"])
        rule = f"{TEST_SHOW} test, the other shows train and valid"
    else:
        fold = int(variant.removeprefix("fold"))
        official = sorted(source.rglob("split_indices.p"))
        if official:
            test = _official_fold(table, official[0], fold)
            rule = f"fold {fold} of the release's {official[0].name} test"
        else:
            test = {name for ids in _shuffled(table) for name in ids[fold - 1 :: FOLDS]}
            rule = f"fold {fold} of five seeded ones test (split_indices.p is missing)"
    splits = table["id"].map(lambda name: "test" if name in test else "train")
    others = table[splits == "train"]
    splits[table["id"].isin(_drawn(others, tenth))] = "valid"
    return splits, f"{rule}; a tenth of the others valid; what is drawn is drawn by class, seeded"


def _drawn(table: pd.DataFrame, share: float) -> set[str]:
    """Draw a share of each class by a hash of the ids: the same on every machine."""
    return {name for ids in _shuffled(table) for name in ids[: round(share * len(ids))]}


def _shuffled(table: pd.DataFrame) -> list[list[str]]:
    """Return the ids of each class in an order that depends on nothing but the ids."""
    return [
        sorted(ids, key=lambda name: hashlib.sha256(f"mustard {name}".encode()).digest())
        for _, ids in table.groupby("label")["id"]
    ]


def _official_fold(table: pd.DataFrame, path: Path, fold: int) -> set[str]:
    """Return the ids of a test fold: ``split_indices.p`` has five pairs of train and test rows."""
    folds = read_pickle(path)
    try:
        train, test = (set(rows) for rows in folds[fold - 1])
        whole = len(folds) == FOLDS and train | test == set(range(len(table)))
    except (TypeError, ValueError, LookupError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path} does not have {FOLDS} folds of the {len(table)} entries of sarcasm_data.json: "
            "take both from one download, or move it away for seeded folds"
        )
    return set(table["id"].iloc[sorted(test)])


def _counts(variant: str) -> dict[str, dict[str, int | None]]:
    """Return the sizes of the splits for the card: the paper's only for its own variant."""
    if variant == "paper":
        return Card.builtin("mustard").splits
    test = 356 if variant == "speaker-independent" else 138
    return {
        "train": {"release": None, "paper": None},
        "valid": {"release": None, "paper": None},
        "test": {"release": test, "paper": None},
    }
