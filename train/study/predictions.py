"""What a finished run predicted, read back from its folder.

Only ``predictions.parquet`` and ``card.yaml`` are read, so any figure can be computed long after
training, without model, features or data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from manifests import Card
from train.metrics import METRIC_SETS, Metrics, compute
from train.report import some


@dataclass(frozen=True)
class Predictions:
    """What a run decided on one split, beside the truth; rows in the order of the ids.

    Attributes:
        run: the run's folder.
        dataset: name of its dataset; "" where the folder does not tell.
        task: "regression", "classification" or "multilabel".
        metrics: name of the metric set.
        classes: names of the classes, empty for regression.
        ids: ids of the utterances.
        decided: as `compute` takes them: floats ``[N]``, class indices ``[N]`` or 0/1 ``[N, C]``.
        truth: the same.
    """

    run: Path
    dataset: str
    task: str
    metrics: str
    classes: tuple[str, ...]
    ids: list[str]
    decided: np.ndarray
    truth: np.ndarray

    def figures(self) -> Metrics:
        """The figures of the metric set."""
        return compute(self.metrics, self.decided, self.truth, self.classes)

    def errors(self) -> np.ndarray:
        """How wrong each utterance is, ``[N]``: the absolute error, or the share of wrong labels.

        Its mean is the MAE, or one less the accuracy.
        """
        if self.task == "regression":
            return np.abs(self.decided - self.truth)
        return (self.decided != self.truth).reshape(len(self.ids), -1).mean(1)


def read_predictions(run: Path, split: str = "test", metrics: str = "") -> Predictions:
    """Read a run's predictions.

    Args:
        run: its folder.
        split: train, valid or test.
        metrics: the metric set; "" takes the one of the run's ``card.yaml``.

    Raises:
        ValueError: the run did not finish, or the metric set judges another kind of task.
    """
    path, card_path = run / "predictions.parquet", run / "card.yaml"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the run did not finish, or is none")
    card = Card.load(card_path) if card_path.is_file() else None
    if card is None and not metrics:
        raise ValueError(f"{card_path}: no such file; say by which metrics to judge: --set NAME")
    metrics = metrics or (card.metrics if card else "")
    if metrics not in METRIC_SETS:
        raise ValueError(
            f"no metric set is called {metrics!r}; there are: {', '.join(METRIC_SETS)}"
        )
    table = pd.read_parquet(path)
    task, classes = _task(table)
    if METRIC_SETS[metrics].task != task:
        fitting = [name for name, known in METRIC_SETS.items() if known.task == task]
        raise ValueError(
            f"the metric set {metrics!r} judges {METRIC_SETS[metrics].task}, {path} holds {task}: "
            f"use one of {', '.join(fitting)}"
        )
    table = table[table["split"] == split].sort_values("id", ignore_index=True)
    if table.empty:
        raise ValueError(f"{path} holds nothing of the split {split!r}")
    dataset, ids = (card.name if card else ""), [str(name) for name in table["id"]]
    decided, truth = (_decisions(table, what, task, classes) for what in ("prediction", "truth"))
    return Predictions(run, dataset, task, metrics, classes, ids, decided, truth)


def check_pair(first: Predictions, second: Predictions) -> None:
    """Raise a ValueError unless two runs predicted the same targets of the same utterances."""
    pair = f"{first.run} and {second.run} cannot be compared"
    for what in ("dataset", "task", "metrics", "classes"):
        ours, theirs = getattr(first, what), getattr(second, what)
        if ours != theirs:
            raise ValueError(f"{pair}: {what} {ours!r} and {theirs!r}")
    only = sorted(set(first.ids) ^ set(second.ids))
    if only:
        raise ValueError(
            f"{pair}: {len(only)} utterances are in one of them only, {some(only)}: train both on "
            "the same manifest and store"
        )
    differs = (first.truth != second.truth).reshape(len(first.ids), -1).any(1)
    if differs.any():
        changed = [name for name, differ in zip(first.ids, differs, strict=True) if differ]
        raise ValueError(
            f"{pair}: the truth of {len(changed)} utterances differs, {some(changed)}: train both "
            "on the same manifest"
        )


def _task(table: pd.DataFrame) -> tuple[str, tuple[str, ...]]:
    """The kind of task and the classes, from the columns that `record.prediction_table` writes."""
    classes = tuple(str(c).removeprefix("M_") for c in table if str(c).startswith("M_"))
    if not classes:
        return "regression", ()
    return ("classification" if "truth" in table else "multilabel"), classes


def _decisions(table: pd.DataFrame, what: str, task: str, classes: Sequence[str]) -> np.ndarray:
    if task == "regression":
        return table[what].to_numpy()
    if task == "classification":
        return pd.Index(classes).get_indexer(pd.Index(table[what]))
    return table[[f"{what}_{name}" for name in classes]].to_numpy()
