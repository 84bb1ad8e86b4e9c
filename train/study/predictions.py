"""Read the predictions of a finished run.

Only ``predictions.parquet`` and ``card.yaml`` are read: metrics can be computed without the model,
the features and the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from manifests import Card
from manifests.printing import preview
from train.metrics import METRIC_SETS, Metrics, compute
from train.study.inputs import find_predictions


@dataclass(frozen=True)
class Predictions:
    """A run's predictions and the truth on one split, sorted by id.

    Attributes:
        run: the run's folder.
        dataset: name of its dataset; "" if the folder has no card.
        task: "regression", "classification" or "multilabel".
        metric_set: name of the metric set.
        classes: names of the classes, empty for regression.
        ids: ids of the utterances.
        decided: the predictions, as `compute` takes them: scores ``[N]``, class indices ``[N]`` or
            0/1 ``[N, C]``.
        truth: the true values, in the same form.
    """

    run: Path
    dataset: str
    task: str
    metric_set: str
    classes: tuple[str, ...]
    ids: list[str]
    decided: np.ndarray
    truth: np.ndarray

    def compute_metrics(self) -> Metrics:
        """Compute the metrics of the metric set."""
        return compute(self.metric_set, self.decided, self.truth, self.classes)

    def errors(self) -> np.ndarray:
        """Return the error of each utterance ``[N]``: absolute, or the fraction of wrong labels.

        Its mean is the MAE, or 1 - accuracy.
        """
        if self.task == "regression":
            return np.abs(self.decided - self.truth)
        return (self.decided != self.truth).reshape(len(self.ids), -1).mean(1)


def read_predictions(run: Path, split: str = "test", metric_set: str = "") -> Predictions:
    """Read a run's predictions.

    Args:
        run: the run's folder.
        split: train, valid or test.
        metric_set: a metric set; "": the one in the run's ``card.yaml``.

    Raises:
        ValueError: the run did not finish, or the metric set is for another kind of task.
    """
    path, card_path = find_predictions(run), run / "card.yaml"
    card = Card.load(card_path) if card_path.is_file() else None
    if card is None and not metric_set:
        raise ValueError(f"{card_path}: no such file; choose the metrics with --set NAME")
    metric_set = metric_set or (card.metrics if card else "")
    if metric_set not in METRIC_SETS:
        raise ValueError(
            f"unknown metric set {metric_set!r}; choose one of {', '.join(METRIC_SETS)}"
        )
    table = pd.read_parquet(path)
    task, classes = _task(table)
    if METRIC_SETS[metric_set].task != task:
        fitting = [name for name, known in METRIC_SETS.items() if known.task == task]
        raise ValueError(
            f"the metric set {metric_set!r} is for {METRIC_SETS[metric_set].task}, {path} contains "
            f"{task}: use one of {', '.join(fitting)}"
        )
    table = table[table["split"] == split].sort_values("id", ignore_index=True)
    if table.empty:
        raise ValueError(f"{path} has no rows of the split {split!r}")
    dataset, ids = (card.name if card else ""), [str(name) for name in table["id"]]
    decided, truth = (_decisions(table, name, task, classes) for name in ("prediction", "truth"))
    return Predictions(run, dataset, task, metric_set, classes, ids, decided, truth)


def check_pair(first: Predictions, second: Predictions) -> None:
    """Raise a ValueError unless two runs predicted the same targets of the same utterances."""
    pair = f"{first.run} and {second.run} cannot be compared"
    for name in ("dataset", "task", "metric_set", "classes"):
        values = getattr(first, name), getattr(second, name)
        if values[0] != values[1]:
            raise ValueError(f"{pair}: {name.replace('_', ' ')} {values[0]!r} and {values[1]!r}")
    only = sorted(set(first.ids) ^ set(second.ids))
    if only:
        raise ValueError(
            f"{pair}: {len(only)} utterances are in only one of them, {preview(only)}: train both "
            "on the same manifest and store"
        )
    differs = (first.truth != second.truth).reshape(len(first.ids), -1).any(1)
    if differs.any():
        changed = [name for name, differ in zip(first.ids, differs, strict=True) if differ]
        raise ValueError(
            f"{pair}: the truth of {len(changed)} utterances differs, {preview(changed)}: train "
            "both on the same manifest"
        )


def _task(table: pd.DataFrame) -> tuple[str, tuple[str, ...]]:
    """Infer the task and the classes from the columns that `run_folder.prediction_table` writes."""
    classes = tuple(str(c).removeprefix("M_") for c in table if str(c).startswith("M_"))
    if not classes:
        return "regression", ()
    return ("classification" if "truth" in table else "multilabel"), classes


def _decisions(table: pd.DataFrame, column: str, task: str, classes: Sequence[str]) -> np.ndarray:
    if task == "regression":
        return table[column].to_numpy()
    if task == "classification":
        return pd.Index(classes).get_indexer(pd.Index(table[column]))
    return table[[f"{column}_{name}" for name in classes]].to_numpy()
