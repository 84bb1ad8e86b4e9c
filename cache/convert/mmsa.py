"""Read and write MMSA's pickle, the field's common feature file of padded arrays for each split.

Where a file is ambiguous, rules decide; whatever a rule cuts or drops is reported:

- A stated length is trusted; a length beyond the array is cut to it, 0: the modality is absent.
- Without lengths a sequence goes from its first to its last row that is not all zero.
- Padding is at the end or, in some files, at the front. This is decided once for each modality, by
  the side on which the zeros are.
- Arrays ``[N, d]`` have one vector per utterance, a sequence of length one, whatever the lengths.
"""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch

from cache.convert.layouts import ExternalFeatures
from cache.reader import FeatureStore
from cache.store.recipe import STORABLE
from manifests.budget import check_fits
from manifests.card import SPLITS, UNIMODAL_LABELS
from manifests.unpickle import load_pickle

ANNOTATIONS = ("Negative", "Neutral", "Positive")  # in the order of the classification labels
UNIMODAL_KEYS = {name: f"regression_labels_{name[-1].upper()}" for name in UNIMODAL_LABELS}
"""A manifest's column to MMSA's key."""


def read_mmsa(path: Path, modalities: Sequence[str] = STORABLE) -> ExternalFeatures:
    """Read an MMSA file; its arrays, splits and labels are joined by id.

    Modalities other than the given ones are ignored.

    Raises:
        ValueError: the pickle contains more than data, or a key is missing or has the wrong shape.
    """
    content = load_pickle(path)
    splits = [s for s in SPLITS if isinstance(content, dict) and isinstance(content.get(s), dict)]
    if not splits:
        raise ValueError(f"{path}: not MMSA's structure: no dict under any of {', '.join(SPLITS)}")
    notes = [f"key {reprlib.repr(key)} is not read" for key in content if key not in splits]
    ids = {split: _ids(path, split, content[split]) for split in splits}
    sequences: dict[str, Sequence[np.ndarray]] = {}
    widths = {}
    every = [i for split in splits for i in ids[split]]
    if not every:
        raise ValueError(f"{path}: it contains no utterance")
    for modality in modalities:
        try:
            found = _sequences(path, modality, content, ids, notes)
        except ValueError as error:
            hint = "; --no-text ignores it" if modality == "text" else ""
            raise ValueError(f"{error}{hint}") from error
        if found is not None:
            sequences[modality], widths[modality] = found
    table = pd.concat([_table(path, s, content[s], ids[s]) for s in splits], ignore_index=True)
    class_labels = all(content[split].get("regression_labels") is None for split in splits)
    return ExternalFeatures(
        path, every, sequences, widths, table=table, class_labels=class_labels, notes=notes
    )


def _sequences(
    path: Path,
    modality: str,
    content: Mapping[str, Any],
    ids: Mapping[str, list[str]],
    notes: list[str],
) -> tuple[list[np.ndarray], int] | None:
    """Return the real rows of every utterance, split by split, and their width; None: absent."""
    found = [split for split in ids if content[split].get(modality) is not None]
    if not found:
        return None
    if found != list(ids):
        raise ValueError(f"{path}: {modality} is in {found}, but not in all of {list(ids)}")
    every = [i for split in ids for i in ids[split]]
    padded: list[np.ndarray] = []
    lengths: list[int | None] = []
    for split in ids:
        padded += _padded(path, split, modality, content[split], len(ids[split]))
        lengths += _lengths(path, split, modality, content[split], ids[split])
    width = padded[0].shape[1]
    for i, rows in zip(every, padded, strict=True):
        if rows.shape[1] != width:
            raise ValueError(f"{path}: {modality} of {i!r} is {rows.shape[1]} wide, not {width}")
    return (_without_padding(modality, every, padded, lengths, notes), width) if width else None


def _column(path: Path, split: str, name: str, content: Mapping[str, Any], count: int) -> Any:
    """Return the value of a key with one entry per utterance; None: the key is absent or empty."""
    values = content.get(name)
    if values is None or (isinstance(values, str | list) and len(values) == 0 and count):
        return None
    if not isinstance(values, list | tuple | np.ndarray) or getattr(values, "ndim", 1) == 0:
        raise ValueError(f"{path}: {split}.{name} is {type(values).__name__}, not a list or array")
    if len(values) != count:
        raise ValueError(f"{path}: {split}.{name} has {len(values)} entries for {count} ids")
    return values


def _ids(path: Path, split: str, content: Mapping[str, Any]) -> list[str]:
    values = content.get("id")
    if not isinstance(values, list | tuple | np.ndarray):
        raise ValueError(f"{path}: {split}.id is missing or not a list: nothing can be joined")
    for value in values:
        if not isinstance(value, str | bytes | int | np.integer):
            raise ValueError(f"{path}: {split}.id contains {reprlib.repr(value)}, not a string")
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]


def _texts(path: Path, split: str, name: str, values: Any) -> list[str]:
    """Return texts that can be encoded: a character that is not Unicode becomes a question mark."""
    for value in values:
        if isinstance(value, list | tuple | dict | set | frozenset | np.ndarray):
            raise ValueError(f"{path}: {split}.{name} contains {reprlib.repr(value)}, not a text")
    encoded = [v if isinstance(v, bytes) else str(v).encode("utf-8", "replace") for v in values]
    return [text.decode("utf-8", "replace") for text in encoded]


def _padded(
    path: Path, split: str, modality: str, content: Mapping[str, Any], count: int
) -> list[np.ndarray]:
    """Return one array ``[T, d]`` per utterance, still padded."""
    values = _column(path, split, modality, content, count)
    if values is None:
        raise ValueError(f"{path}: {split}.{modality} is empty for {count} ids")
    items = []
    for value in values:
        if _too_deep(value):
            raise ValueError(f"{path}: {split}.{modality} contains lists nested deeper than [T, d]")
        item = np.asarray(value)
        if item.ndim not in (1, 2) or item.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}: {split}.{modality} must hold numbers [N, T, d] or [N, d], "
                f"an entry is {item.dtype} {item.shape}"
            )
        items.append(item if item.ndim == 2 else item[None])
    return items


def _too_deep(value: Any) -> bool:
    """Return whether lists are nested deeper than ``[T, d]``, which numpy would expand."""
    depth = 0
    while isinstance(value, list | tuple) and value and depth < 3:
        value, depth = value[0], depth + 1
    return depth == 3


def _lengths(
    path: Path, split: str, modality: str, content: Mapping[str, Any], ids: Sequence[str]
) -> list[int | None]:
    name = f"{modality}_lengths"
    vectors = len(ids) > 0 and np.ndim(content[modality][0]) == 1
    values = None if vectors else _column(path, split, name, content, len(ids))
    if values is None:
        return [1 if vectors else None] * len(ids)
    lengths = _numbers(path, split, name, values)
    for i, length in zip(ids, lengths, strict=True):
        if not (length >= 0 and length == int(length)):
            raise ValueError(f"{path}: {split}.{name} of {i!r} is {length}, not a length")
    return [int(length) for length in lengths]


def _numbers(path: Path, split: str, name: str, values: Any) -> list[float]:
    try:
        for value in values:
            if isinstance(value, list | tuple) and (len(value) != 1 or _too_deep(value)):
                raise ValueError(f"it contains {reprlib.repr(value)}")
        return [float(np.asarray(value, np.float64).reshape(())) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {split}.{name} must hold one number per id: {error}") from error


def _without_padding(
    modality: str,
    ids: Sequence[str],
    padded: Sequence[np.ndarray],
    lengths: Sequence[int | None],
    notes: list[str],
) -> list[np.ndarray]:
    """Return the real rows of each utterance; what was decided is appended to `notes`."""
    filled = [(rows != 0).any(axis=1) for rows in padded]  # NaN counts: it is not padding
    stated = [n is not None for n in lengths]
    wanted = [len(f) if n is None else min(n, len(f)) for f, n in zip(filled, lengths, strict=True)]
    at_end = at_front = 0
    for f, n in zip(filled, wanted, strict=True):
        late, early = f[n:].any(), f[: len(f) - n].any()  # rows where padding could be
        at_end += bool(early and not late)
        at_front += bool(late and not early)
    front = at_front > at_end
    sequences, dropped = [], []
    for i, rows, f, n, known in zip(ids, padded, filled, wanted, stated, strict=True):
        if not known:
            real = np.flatnonzero(f)
            start, stop = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
        else:
            start, stop = (len(f) - n, len(f)) if front else (0, n)
            if f[:start].any() or f[stop:].any():
                dropped.append(i)
        sequences.append(rows[start:stop])
    if front:
        notes.append(f"{modality}: the padding is in front of the sequences")
    if not all(stated):
        notes.append(
            f"{modality}: {len(stated) - sum(stated)} lengths are not stated; taken from the first "
            "to the last row that is not zero"
        )
    beyond = [i for i, n, f in zip(ids, lengths, filled, strict=True) if n and n > len(f)]
    if beyond:
        notes.append(
            f"{modality}: {len(beyond)} lengths exceed the number of rows and were cut, the first "
            f"is {beyond[0]!r}"
        )
    if dropped:
        notes.append(
            f"{modality}: {len(dropped)} utterances have rows beyond their stated length; these "
            f"were dropped, the first is {dropped[0]!r}"
        )
    return sequences


def _table(path: Path, split: str, content: Mapping[str, Any], ids: list[str]) -> pd.DataFrame:
    """Return the manifest's columns that the file can fill."""
    table = pd.DataFrame({"id": ids, "video": "", "split": split})
    texts = _column(path, split, "raw_text", content, len(ids))
    texts = [""] * len(ids) if texts is None else texts
    table["text"] = _texts(path, split, "raw_text", texts)
    columns = {"label": "regression_labels"}
    if content.get("regression_labels") is None:
        columns = {"label": "classification_labels"}
    for column, name in (columns | UNIMODAL_KEYS).items():
        values = _column(path, split, name, content, len(ids))
        if values is not None:
            table[column] = _numbers(path, split, name, values)
    annotations = _column(path, split, "annotations", content, len(ids))
    if annotations is not None:
        table["annotation"] = _texts(path, split, "annotations", annotations)
    return table


def write_mmsa(store: FeatureStore, table: pd.DataFrame, file: BinaryIO) -> list[str]:
    """Write the utterances of a manifest's table in MMSA's form, padded at the end with zeros.

    Args:
        store: the store.
        table: columns ``id``, ``split``, ``text``, ``label`` and optionally ``label_t/_a/_v``.
        file: the open file to write.

    Returns:
        Sentences on what the file lacks.

    Raises:
        ValueError: MMSA does not know a split or a label, the store lacks an utterance, or the
            padded arrays do not fit into memory.
    """
    missing = [c for c in ("id", "split", "text", "label") if c not in table]
    if missing:
        raise ValueError(f"the manifest has no column {', '.join(missing)}, which MMSA needs")
    unknown = sorted(set(table["split"].astype(str)) - set(SPLITS))
    if unknown:
        raise ValueError(f"the manifest has the split {unknown[0]!r}; MMSA has {', '.join(SPLITS)}")
    names = {"label": "regression_labels"}
    names |= {column: name for column, name in UNIMODAL_KEYS.items() if column in table}
    labels = {name: _finite(table, column) for column, name in names.items()}
    frames = store.select(table["id"].tolist(), resident=False).lengths
    longest = {m: max(1, int(lengths.max())) for m, lengths in frames.items()}
    padded = sum(len(table) * n * store.widths[m] * 4.0 for m, n in longest.items())
    check_fits("an mmsa file, padded to its longest utterances,", padded, "; export to h5 instead")
    content = {}
    for split in SPLITS:
        chosen = (table["split"] == split).to_numpy()
        ids = table.loc[chosen, "id"].tolist()
        part: dict[str, Any] = {
            "raw_text": table.loc[chosen, "text"].fillna("").astype(str).tolist(),
            "id": ids,
            # MMSA needs these keys: the store's text features, if it has some, and tokens.
            "text": np.zeros((len(ids), 0, 0), np.float32),
            "text_bert": np.zeros((len(ids), 3, 0), np.float32),
        }
        features = store.select(ids, resident=False)
        for modality, packed in features.batch(torch.arange(len(ids))).items():
            lengths = packed.lengths.tolist()
            x = np.zeros((len(ids), longest[modality], store.widths[modality]), np.float32)
            mask = np.arange(x.shape[1])[None] < packed.lengths.numpy()[:, None]
            x[mask] = packed.values.numpy()
            part[modality] = x
            part[f"{modality}_lengths"] = lengths
        for name, values in labels.items():
            part[name] = values[chosen]
        classes = np.sign(part["regression_labels"]).astype(int) + 1
        part["annotations"] = [ANNOTATIONS[c] for c in classes]
        part["classification_labels"] = classes.astype(np.float32)
        content[split] = part
    pickle.dump(content, file, protocol=4)
    lacking = "text_bert is" if "text" in store.widths else "text and text_bert are"
    return [f"{lacking} empty: the store has no such content"]


def _finite(table: pd.DataFrame, column: str) -> np.ndarray:
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float32, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = table.iloc[int(bad[0])]
        raise ValueError(f"{column} of {row['id']!r} is {row[column]}; MMSA's labels are numbers")
    return values
