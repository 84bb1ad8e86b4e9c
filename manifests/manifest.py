"""The table of utterances: its columns, its file, its digest."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.atomic import atomic_path
from manifests.budget import Budget
from manifests.card import SPLITS, UNIMODAL_LABELS, Card
from manifests.locate import CARD, MANIFEST, find_manifest
from manifests.validation import find_faults, raise_faults

STRINGS = ("id", "video", "split", "text", "language", "speaker", "dialogue")
FLOATS = ("start", "end", "crop_x", "crop_y", "crop_w", "crop_h")
INTEGERS = ("turn",)
CONTEXT = "context"
_PER_CELL = 30  # bytes

Cut = tuple[str, str, float | None, float | None, tuple[float, float, float, float] | None]
"""``(id, video, start, end, crop)`` of an utterance, ``crop`` being ``(x, y, width, height)``."""


@dataclass
class Manifest:
    """A dataset: its card and one row for each utterance.

    The columns, in this order:

    ========================= ======= ==========================================================
    id                        string  unique
    video                     string  path below the data root, with forward slashes
    start, end                float64 seconds in the file; both null: the whole file
    crop_x/_y/_w/_h           float64 part of the picture, as fractions; all null: the whole
    split                     string  train, valid or test
    text, language            string  transcript and its language (default: the card's)
    speaker, dialogue         string  may be null
    turn                      Int64   position in the dialogue, may be null
    context                   string  the preceding utterances, one per line, oldest first; null:
                                      none. Only if the release has a context of its own
    label, or one per class   float64 (regression), string (classification), Int64 (multilabel)
    label_t, label_a, label_v float64 only if the card says `unimodal`
    ========================= ======= ==========================================================

    Other columns are kept as they are. A missing optional column is filled with nulls. Columns are
    converted to these types: a value that cannot be converted raises a ValueError.
    """

    card: Card
    table: pd.DataFrame
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        table = self.table.reset_index(drop=True).copy()
        missing = [c for c in ("id", "video", "split", "text") if c not in table]
        missing += [c for c in self._label_types() if c not in table]
        if missing:
            raise ValueError(f"{self._where()}: no column {', '.join(missing)}: add it")
        if "language" not in table:
            table["language"] = self.card.language
        types = self.column_types()
        if CONTEXT in table:  # never added, unlike other columns: digests without it stay the same
            types[CONTEXT] = "string"
        for column, dtype in types.items():
            if column not in table:
                table[column] = pd.Series(pd.NA, index=table.index, dtype="object")
            try:
                table[column] = _cast(table[column], dtype)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self._where()}: column {column}: {error}") from error
        extra = [c for c in table if c not in types]
        self.table = table[[*types, *extra]]

    def _label_types(self) -> dict[str, str]:
        kind = {"regression": "float64", "classification": "string", "multilabel": "Int64"}
        types = dict.fromkeys(self.card.labels, kind[self.card.task])
        return types | dict.fromkeys(UNIMODAL_LABELS if self.card.unimodal else (), "float64")

    def column_types(self) -> dict[str, str]:
        """Return the schema: column name to pandas dtype, in the order of the columns."""
        types = dict.fromkeys(["id", "video"], "string")
        types |= dict.fromkeys(FLOATS, "float64")
        types |= dict.fromkeys(STRINGS, "string")
        types |= dict.fromkeys(INTEGERS, "Int64")
        return types | self._label_types()

    @classmethod
    def load(cls, dataset: str | Path) -> "Manifest":
        """Read the manifest in a folder; a bare name such as ``"demo"`` means ``data/demo``.

        Raises:
            ValueError: no such file, or an invalid card or table.
        """
        path = find_manifest(dataset)
        card = Card.load(path.with_name(CARD))
        _charge_table(path)
        return cls(card, pd.read_parquet(path), path)

    def save(self, folder: str | Path) -> Path:
        """Write ``card.yaml`` and ``manifest.parquet`` atomically into `folder`; return it."""
        folder = Path(folder)
        self.card.save(folder / CARD)
        self.path = folder / MANIFEST
        with atomic_path(self.path) as temporary:
            self.table.to_parquet(temporary, engine="pyarrow", index=False)
        return folder

    def split(self, name: str) -> pd.DataFrame:
        """Return the rows of one split, sorted by id, with a new index."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: use {', '.join(SPLITS)}")
        rows = self.table[self.table["split"] == name]
        return rows.sort_values("id", ignore_index=True)

    @property
    def cuts(self) -> list[Cut]:
        """The part of a video that each utterance is, sorted by id: all that features depend on."""
        columns = ["id", "video", *FLOATS]
        cells = self.table[columns].astype("object").itertuples(index=False)
        cuts: list[Cut] = []
        for i, video, *numbers in cells:
            # + 0.0 turns -0.0 into 0.0: equal numbers have one digest.
            start, end, *box = (None if pd.isna(each) else float(each) + 0.0 for each in numbers)
            x, y, width, height = box
            crop = None
            if x is not None and y is not None and width is not None and height is not None:
                crop = (x, y, width, height)
            cuts.append((str(i), str(video), start, end, crop))
        return sorted(cuts, key=lambda cut: cut[0])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the table's content: rows sorted by id, columns by name.

        It does not depend on the order of rows and columns, the file's bytes or path, or the card
        (a reworded licence is the same data), but on every value.
        """
        columns = sorted(str(c) for c in self.table)
        content = self.table[columns].astype("object")
        rows = [[_plain(value) for value in row] for row in content.itertuples(index=False)]
        # Sorted by id first; the whole line breaks the tie of a (faulty) duplicate id.
        at = columns.index("id")
        lines = sorted((row[at] or "", json.dumps(row, allow_nan=False)) for row in rows)
        sha = hashlib.sha256(json.dumps(columns).encode())
        for _, line in lines:
            sha.update(b"\n" + line.encode())
        return sha.hexdigest()

    def check(self) -> None:
        """Raise one ValueError that lists all faults: file, row and remedy of each."""
        raise_faults(find_faults(self.card, self.table), self._where())

    def _where(self) -> str:
        return str(self.path or f"manifest of {self.card.name}")


def _charge_table(path: Path) -> None:
    """Raise a ValueError if a table takes more memory than a file of its size may."""
    try:
        about = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    content = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
    cells = about.num_rows * about.num_columns  # equal cells in a row are stored once
    Budget.of(path).take(str(path), content + _PER_CELL * cells)


def _cast(values: pd.Series, dtype: str) -> pd.Series:
    if dtype == "string":
        return values.astype("string")
    numbers = pd.to_numeric(values)
    return numbers.astype("Int64" if dtype == "Int64" else "float64")


def _plain(value: object) -> str | int | float | bool | None:
    """Convert a cell to a JSON value; every kind of null becomes None."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, (str, int)):
        return value
    raise ValueError(f"a cell contains {value!r}: a manifest keeps text, numbers and nulls")
