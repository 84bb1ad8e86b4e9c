"""The card of a dataset: its task, labels, splits and licence."""

from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml

from manifests.atomic import atomic_write
from manifests.budget import Budget, read_file

TASKS = ("regression", "classification", "multilabel")
SPLITS = ("train", "valid", "test")
UNIMODAL_LABELS = ("label_t", "label_a", "label_v")
_COPIES = 1000  # bytes per byte that the parser of YAML takes: a card has 130 KB at most
CARDS = resources.files("manifests") / "cards"


@dataclass(frozen=True)
class Card:
    """The description of a dataset, read from YAML; an inconsistent card raises a ValueError.

    Attributes:
        name: short name; also the folder below ``data/`` and the name of the adapter.
        title: the full name, with the year.
        task: "regression", "classification" (one class) or "multilabel" (any number of classes).
        labels: the columns of the target: ``["label"]``, or for multilabel one 0/1 column per
            class.
        classes: the class names; for multilabel the same as `labels`, for regression empty.
        range: lowest and highest label (regression), None otherwise.
        unimodal: whether the table also has ``label_t``, ``label_a`` and ``label_v``.
        transcripts: whether every utterance has a text; if not, the text may be empty.
        language: ISO 639-1 code of the transcripts.
        language_model: the text model trained by default, a hub name or ``builtin:...``.
        encoder: the frozen audio-visual encoder used by default.
        preset: the training preset used by default.
        metrics: the set of metrics reported.
        splits: for train, valid and test the row counts of the release and of the paper; None where
            they do not state it.
        split_rule: the rule of the splits in words, if the release does not define them.
        disjoint: columns that may not share a value across splits, for instance ``["speaker"]``.
        licence: the licence of the data (not of this code).
        obtain: how to get the data.
    """

    name: str
    title: str
    task: str
    labels: list[str] = field(default_factory=lambda: ["label"])
    classes: list[str] = field(default_factory=list)
    range: list[float] | None = None
    unimodal: bool = False
    transcripts: bool = True
    language: str = "en"
    language_model: str = "builtin:minilm"
    encoder: str = "embedded"
    preset: str = "demo"
    metrics: str = "mosi"
    splits: dict[str, dict[str, int | None]] = field(default_factory=dict)
    split_rule: str = ""
    disjoint: list[str] = field(default_factory=list)
    licence: str = ""
    obtain: str = ""

    def __post_init__(self) -> None:
        faults = []
        if self.task not in TASKS:
            faults.append(f"task is {short(self.task)}: use one of {', '.join(TASKS)}")
        if self.task == "multilabel":
            if not self.classes or self.labels != self.classes:
                faults.append("multilabel needs `classes`, and `labels` equal to them")
        elif self.labels != ["label"]:
            faults.append(f"labels is {short(self.labels)}: {self.task} has the one column 'label'")
        if self.task == "regression":
            if self.range is None or len(self.range) != 2 or not self.range[0] < self.range[1]:
                faults.append(f"range is {short(self.range)}: regression needs [lowest, highest]")
            if self.classes:
                faults.append("classes is given: regression has none")
        elif len(set(self.classes)) != len(self.classes) or not self.classes:
            faults.append("classes must be a list of distinct names")
        if any(not isinstance(name, str) for name in self.classes or ()):
            faults.append(
                f"classes is {short(self.classes)}: YAML parses 1 and yes as a number and a "
                "boolean, quote them"
            )
        for split in self.splits:
            if split not in SPLITS:
                faults.append(f"splits names {split!r}: use {', '.join(SPLITS)}")
        if faults:
            raise ValueError(f"card {self.name!r}: " + "; ".join(faults))

    @classmethod
    def load(cls, path: str | Path) -> "Card":
        """Read a card from a YAML file; an unknown or a missing key raises a ValueError."""
        path = Path(path)
        content = read_file(path, Budget.of(path), copies=_COPIES)
        return cls._parse(content.decode("utf-8"), str(path))

    @classmethod
    def builtin(cls, name: str) -> "Card":
        """Return a card of this package; a ValueError for an unknown name lists the known ones."""
        if name not in builtin_names():
            raise ValueError(
                f"unknown card {name!r}; the cards are: {', '.join(builtin_names())} "
                "(`python -m manifests list` describes them)"
            )
        return cls._parse((CARDS / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml")

    @classmethod
    def _parse(cls, text: str, where: str) -> "Card":
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{where}: not YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{where}: a card is a mapping of keys to values")
        known = [f.name for f in fields(cls)]
        unknown = sorted(str(key) for key in set(content) - set(known))
        if unknown:
            raise ValueError(
                f"{where}: unknown key {', '.join(unknown)}; a card has: {', '.join(known)}"
            )
        required = [
            f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING
        ]
        missing = [key for key in required if key not in content]
        if missing:
            raise ValueError(f"{where}: missing key {', '.join(missing)}: add it")
        try:
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    @property
    def target(self) -> str:
        """The target of the prediction, in words."""
        if self.range is not None:
            return f"a score from {self.range[0]:g} to {self.range[1]:g}"
        any_number = "any number" if self.task == "multilabel" else "one"
        return f"{any_number} of {', '.join(self.classes)}"

    def save(self, path: str | Path) -> None:
        """Write the card as YAML, atomically; missing folders are created."""
        text = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True, width=100)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(Path(path), text.encode())

    def as_dict(self) -> dict[str, Any]:
        """Return the card's keys and values, as in the YAML file."""
        return asdict(self)


def builtin_names() -> list[str]:
    """Return the names of the cards of this package, sorted."""
    return sorted(
        card.name.removesuffix(".yaml") for card in CARDS.iterdir() if card.name.endswith(".yaml")
    )
