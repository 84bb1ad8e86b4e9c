"""Read features that other programs extracted from h5, npz and csv files.

Modalities are not joined by position: each file states which rows belong to which id.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import fsspec
import numpy as np
import pandas as pd

from cache.convert.arrays import h5_arrays, npz_arrays
from cache.store.metadata import STATUSES, parse_json
from cache.store.recipe import MODALITIES, STORABLE
from manifests.budget import Budget

LAYOUT = "semanticmac-features"
LAYOUT_VERSION = 1
_BLOCK = 1 << 18
_PER_CELL = 24  # bytes: of the number, and of the copies that sorting makes
_PER_ROW = 300  # bytes: of the id and the modality, which are objects
NOT_A_NUMBER = ["", "nan", "NaN", "NAN"]


@dataclass
class ExternalFeatures:
    """The content of another program's file.

    Attributes:
        path: the file.
        ids: utterance ids, distinct, in any order.
        sequences: for each modality in the file one array ``[T, d]`` per utterance, in the order of
            `ids`.
        widths: for each modality its ``d``.
        columns: other values of each utterance: ``status``, ``error``, ``duration``.
        table: transcripts, labels and splits, if the file has them (columns of a manifest).
        class_labels: whether the labels in `table` are numbers of classes, not scores.
        dataset: the dataset's name, if the file states it.
        notes: sentences on what was cut, dropped or missing.
    """

    path: Path
    ids: list[str]
    sequences: dict[str, Sequence[np.ndarray]]
    widths: dict[str, int]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    table: pd.DataFrame | None = None
    class_labels: bool = False
    dataset: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError(f"{self.path}: it contains no utterance")
        if not self.sequences.keys() & set(MODALITIES):
            raise ValueError(
                f"{self.path}: it contains features of neither {' nor '.join(MODALITIES)}"
            )
        for modality, width in self.widths.items():
            if not width:
                raise ValueError(f"{self.path}: {modality} has no columns")
        for i, count in Counter(self.ids).items():
            if count > 1:
                raise ValueError(f"{self.path}: id {i!r} occurs {count} times; ids must be unique")
            if not i or (not i.isprintable() and not _encodable(i)):
                raise ValueError(f"{self.path}: {i!r} is not an id; give every utterance an id")

    def frames(self, modality: str) -> np.ndarray:
        """Return the number of rows of each utterance, ``[N]`` int64, without reading the rows."""
        sequences = self.sequences[modality]
        if isinstance(sequences, RaggedArray):
            return np.diff(sequences.offsets)
        return np.fromiter(map(len, sequences), np.int64, len(sequences))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class RaggedArray(Sequence[np.ndarray]):
    """Sequences of different lengths in one array; item ``i`` is read when it is accessed.

    Attributes:
        values: ``[sum T, d]``, in memory or an open HDF5 dataset.
        offsets: ``[N + 1]`` int64.
    """

    values: Any
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Sequence[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return np.asarray(self.values[int(self.offsets[index]) : int(self.offsets[index + 1])])


def read_h5(path: Path, modalities: Sequence[str] = STORABLE) -> ExternalFeatures:
    """Read the HDF5 form of the layout (``docs/convert.md``); features stay in the file.

    Raises:
        ValueError: the file is not HDF5, a dataset is missing or has the wrong shape, or its
            content is in another file.
    """
    values = [f"{modality}/values" for modality in modalities]
    found, about = h5_arrays(path, _names(modalities), values, ("layout", "version", "dataset"))
    return _of_layout(path, found, about, modalities)


def read_npz(path: Path, modalities: Sequence[str] = STORABLE) -> ExternalFeatures:
    """Read the NumPy form of the layout (``docs/convert.md``); nothing is unpickled.

    Raises:
        ValueError: the file is not an npz, or an array is missing, has the wrong shape or does not
            fit into memory.
    """
    found = npz_arrays(path, [*_names(modalities), "about"])
    about = np.asarray(found.pop("about", "{}"))
    try:
        if about.size != 1:
            raise ValueError("it is an array")
        about = parse_json(str(about.item()).encode(), "it")
    except ValueError as error:
        raise ValueError(f"{path}: 'about' is not JSON: {error}; leave it out") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path}: 'about' is not a JSON object {{...}}; leave it out")
    return _of_layout(path, found, about, modalities)


def _names(modalities: Sequence[str]) -> list[str]:
    """Return the names of the layout's arrays; a file's other arrays are not read."""
    of_modalities = [f"{m}/{name}" for m in modalities for name in ("values", "offsets")]
    return ["ids", "status", "error", "duration", *of_modalities]


def _of_layout(
    path: Path, found: Mapping[str, Any], about: Mapping[str, Any], modalities: Sequence[str]
) -> ExternalFeatures:
    dataset = _dataset_of(path, about)
    if "ids" not in found:
        raise ValueError(f"{path}: no 'ids'; the layout is on the documentation's page convert.md")
    ids = _strings(path, "ids", found["ids"])
    sequences: dict[str, Sequence[np.ndarray]] = {}
    widths = {}
    for modality in modalities:
        if f"{modality}/values" in found:
            sequences[modality] = _ragged(path, modality, found, len(ids))
            widths[modality] = int(found[f"{modality}/values"].shape[1])
    columns: dict[str, list[Any]] = {}
    for name in ("status", "error"):
        if name in found:
            columns[name] = _strings(path, name, found[name])
    if "duration" in found:
        columns["duration"] = _seconds(path, found["duration"])
    for name, column in columns.items():
        if len(column) != len(ids):
            raise ValueError(f"{path}: {name} has {len(column)} entries for {len(ids)} ids")
    unknown = set(columns.get("status", ())) - set(STATUSES)
    if unknown:
        raise ValueError(f"{path}: status {min(unknown)!r}; use one of {', '.join(STATUSES)}")
    return ExternalFeatures(path, ids, sequences, widths, columns, dataset=dataset)


def _dataset_of(path: Path, about: Mapping[str, Any]) -> str | None:
    """Return the dataset's name in a file of this layout and version; None: not stated."""
    layout, version = about.get("layout", LAYOUT), about.get("version", LAYOUT_VERSION)
    known = isinstance(layout, str) and layout == LAYOUT
    if not (known and isinstance(version, int | np.integer) and version <= LAYOUT_VERSION):
        raise ValueError(
            f"{path} is {reprlib.repr(layout)} version {reprlib.repr(version)}; this release "
            f"reads {LAYOUT!r} version {LAYOUT_VERSION}"
        )
    dataset = about.get("dataset")
    if not isinstance(dataset, str | None):
        raise ValueError(f"{path}: the dataset's name is {reprlib.repr(dataset)}, not a text")
    return dataset


def _ragged(path: Path, modality: str, found: Mapping[str, Any], count: int) -> RaggedArray:
    values = found[f"{modality}/values"]
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: {modality}/values is {values.dtype} {values.shape}; it must hold numbers "
            "of shape [rows, width]"
        )
    if f"{modality}/offsets" not in found:
        if len(values) != count:
            raise ValueError(
                f"{path}: no {modality}/offsets, and {len(values)} rows for {count} ids"
            )
        return RaggedArray(values, np.arange(count + 1))  # one vector per utterance
    offsets = np.asarray(found[f"{modality}/offsets"])
    good = offsets.shape == (count + 1,) and offsets.dtype.kind in "iu"
    if good:
        offsets = offsets.astype(np.int64)
        good = (
            offsets[0] == 0 and offsets[-1] == len(values) and bool((np.diff(offsets) >= 0).all())
        )
    if not good:
        raise ValueError(
            f"{path}: {modality}/offsets must be {count + 1} integers that rise from 0 to "
            f"{len(values)}, the rows of {modality}/values"
        )
    return RaggedArray(values, offsets)


def _seconds(path: Path, values: Any) -> list[float]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise ValueError(
            f"{path}: duration is {array.dtype} {array.shape}; it must be seconds [N], none of "
            "them infinite or NaN"
        )
    return array.astype(np.float64).tolist()


def _strings(path: Path, name: str, values: Any) -> list[str]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "USOT":
        raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}; it must be strings [N]")
    try:
        strings = [v.decode() if isinstance(v, bytes) else str(v) for v in array.tolist()]
        "".join(strings).encode()
    except UnicodeError as error:
        raise ValueError(f"{path}: {name} contains text that is not UTF-8: {error}") from error
    return strings


def read_csv(path: Path, modality: str | None = None) -> ExternalFeatures:
    """Read a table with one row per utterance or frame (``docs/convert.md``).

    Args:
        path: the file: ``id``, optionally ``modality`` and ``frame``; other columns are features.
        modality: the modality of all rows if the file has no column ``modality``.

    Raises:
        ValueError: a column is missing or not numeric, or a frame occurs twice.
    """
    try:
        _charge_csv(path)
        with _unpacked(path) as file:
            header = pd.read_csv(file, nrows=0).columns.tolist()
        names = [c for c in header if c not in ("id", "modality", "frame")]
        with _unpacked(path) as file:
            table = pd.read_csv(
                file,
                dtype={"id": str, "modality": str},
                keep_default_na=False,  # the id of an utterance may be NA
                na_values=dict.fromkeys(names, NOT_A_NUMBER),
            )
    except Exception as error:  # a malformed or compressed file may fail in any way
        raise ValueError(f"{path} cannot be read as csv: {error}") from error
    if "id" not in header or not names:
        raise ValueError(f"{path}: the columns are {header[:8]}; need 'id' and features")
    for name in [*names, *(c for c in ["frame"] if c in table)]:
        if len(table) and not pd.api.types.is_numeric_dtype(table[name]):
            row = int(np.flatnonzero(pd.to_numeric(table[name], errors="coerce").isna())[0])
            raise ValueError(
                f"{path}: line {row + 2}: {name} {table[name].iloc[row]!r} is not a number"
            )
    if "modality" not in table:
        if modality is None:
            raise ValueError(
                f"{path}: no column 'modality': add it, or pass --modality audio|vision"
            )
        table["modality"] = modality
    unknown = table.loc[~table["modality"].isin(MODALITIES), "modality"]
    if len(unknown):
        raise ValueError(
            f"{path}: line {unknown.index[0] + 2}: modality {unknown.iloc[0]!r}; "
            f"use {' or '.join(MODALITIES)}"
        )
    return _of_table(path, table, names)


def _unpacked(path: Path) -> Any:
    """Open a table, which may be compressed: its suffix says how."""
    return fsspec.open(path.absolute().as_uri(), "rb", compression="infer")


def _charge_csv(path: Path) -> None:
    """Charge what a table takes.

    Raises:
        OverBudgetError: it takes more than it may.
    """
    budget = Budget.of(path)
    with _unpacked(path) as file:
        while block := file.read(_BLOCK):
            cells, rows = block.count(b","), block.count(b"\n")
            budget.take("the table", len(block) + _PER_CELL * cells + _PER_ROW * rows)


def _of_table(path: Path, table: pd.DataFrame, names: list[str]) -> ExternalFeatures:
    ids = sorted(table["id"].unique())
    table["place"] = table["id"].map({i: place for place, i in enumerate(ids)})
    sequences: dict[str, Sequence[np.ndarray]] = {}
    widths = {}
    for modality, rows in table.groupby("modality"):
        if "frame" in rows:
            twice = rows.duplicated(["id", "frame"])
            if twice.any():
                row = rows[twice].iloc[0]
                raise ValueError(
                    f"{path}: line {rows.index[twice][0] + 2}: frame {row['frame']} of "
                    f"{modality} of {row['id']!r} occurs twice"
                )
            rows = rows.sort_values("frame", kind="stable")
        rows = rows.sort_values("place", kind="stable")
        values = rows[names].to_numpy(np.float64)
        # Modalities share the columns: columns at the end that are empty in all rows are another's.
        used = np.flatnonzero(~np.isnan(values).all(axis=0))
        width = int(used[-1]) + 1 if len(used) else 0
        counts = np.bincount(rows["place"], minlength=len(ids))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        sequences[str(modality)] = RaggedArray(values[:, :width], offsets)
        widths[str(modality)] = width
    return ExternalFeatures(path, ids, sequences, widths)
