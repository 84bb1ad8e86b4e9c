"""Metric sets, with every metric defined as in the papers on its dataset.

A set takes decisions and truth from `Task.to_decision`: floats ``[N]`` for a score, class indices
``[N]`` for one class, 0/1 ``[N, C]`` for several. Metrics are fractions, not percent. A metric that
is undefined on the data is NaN, and averages exclude it: correlation with a constant, n-Acc of an
emotion that no utterance has, F1 of a class that is in neither the truth nor the predictions. NaN
in the input is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    mean_absolute_error,
    precision_score,
    recall_score,
    root_mean_squared_error,
)

Metrics = dict[str, float]


@dataclass(frozen=True)
class MetricSet:
    """The metrics reported for a kind of dataset.

    Attributes:
        task: regression, classification or multilabel.
        compute: maps decisions, truth and class names to metrics.
        select: the metric on the validation split that chooses the epoch, higher is better; "":
            the lowest loss chooses.
    """

    task: str
    compute: Callable[[np.ndarray, np.ndarray, Sequence[str]], Metrics]
    select: str


def compute(
    name: str, decided: np.ndarray, truth: np.ndarray, classes: Sequence[str] = ()
) -> Metrics:
    """Compute the metrics of a set.

    Raises:
        ValueError: an unknown set, no rows, different shapes, or NaN in the input.
    """
    if name not in METRIC_SETS:
        raise ValueError(f"unknown metric set {name!r}; choose from {', '.join(METRIC_SETS)}")
    if decided.shape != truth.shape or not len(truth):
        raise ValueError(f"cannot compare predictions {decided.shape} with truth {truth.shape}")
    for what, values in (("predictions", decided), ("truth", truth)):
        bad = ~np.isfinite(np.asarray(values, dtype=float))
        if bad.any():
            raise ValueError(f"{int(bad.sum())} of the {what} are NaN or infinite")
    return METRIC_SETS[name].compute(decided, truth, classes)


def _mosi(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of CMU-MOSI and MOSEI, scores in [-3, 3]; MAE and Corr on unclipped predictions."""
    rated = truth != 0
    has0 = _two_classes(decided >= 0, truth >= 0)
    non0 = _two_classes(decided[rated] > 0, truth[rated] > 0)
    return {
        "MAE": float(mean_absolute_error(truth, decided)),
        "Corr": _corr(decided, truth),
        "Acc7": _rounded_accuracy(decided, truth, 3),
        "Acc5": _rounded_accuracy(decided, truth, 2),
        "Acc2_has0": has0[0],
        "F1_has0": has0[1],
        "Acc2_non0": non0[0],
        "F1_non0": non0[1],
    }


def _sims(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of CH-SIMS and v2, scores in [-1, 1]: clipped first; 0 counts as negative."""
    decided, truth = decided.clip(-1, 1), truth.clip(-1, 1)
    acc2, f1 = _two_classes(decided > 0, truth > 0)
    return {
        "MAE": float(mean_absolute_error(truth, decided)),
        "Corr": _corr(decided, truth),
        "Acc5": _binned_accuracy(decided, truth, (-0.7, -0.1, 0.1, 0.7)),
        "Acc3": _binned_accuracy(decided, truth, (-0.1, 0.1)),
        "Acc2": acc2,
        "F1": f1,
    }


def _score(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of a score on any scale: MAE, RMSE, correlation, CCC.

    CCC is Lin's concordance, 2 cov(x, y) / (var x + var y + (mean x - mean y)^2); NaN if both
    are the same constant.
    """
    spread = truth.var() + decided.var() + (truth.mean() - decided.mean()) ** 2
    shared = ((truth - truth.mean()) * (decided - decided.mean())).mean()
    return {
        "MAE": float(mean_absolute_error(truth, decided)),
        "RMSE": float(root_mean_squared_error(truth, decided)),
        "Corr": _corr(decided, truth),
        "CCC": float(2 * shared / spread) if spread else float("nan"),
    }


def _mosei_emotion(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics per emotion, multilabel: n-Acc = (TPR + TNR) / 2, binary and weighted F1."""
    results: Metrics = {}
    for c, name in enumerate(classes):
        guess, true = decided[:, c].astype(bool), truth[:, c].astype(bool)
        results[f"nAcc_{name}"] = (_share(guess[true]) + _share(~guess[~true])) / 2
        no, yes = _f1_each(guess, true, 2)
        results[f"bF1_{name}"] = yes
        results[f"wF1_{name}"] = float(np.nansum([(~true).mean() * no, true.mean() * yes]))
    return _averages(results, ("nAcc", "bF1", "wF1"))


def _iemocap(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of one of six emotions: s-Acc and b-F1 one against the rest, and overall metrics.

    b-F1 of an emotion is its F1 in the conversation setting.
    """
    results: Metrics = {}
    f1 = _f1_each(decided, truth, len(classes))
    for c, name in enumerate(classes):
        results[f"sAcc_{name}"] = float(accuracy_score(truth == c, decided == c))
        results[f"bF1_{name}"] = f1[c]
    return _averages(results, ("sAcc", "bF1")) | _overall(decided, truth)


def _one_class(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of one of several emotions: accuracy, weighted F1, F1 of each."""
    each = _f1_each(decided, truth, len(classes))
    named = {f"F1_{name}": f1 for name, f1 in zip(classes, each, strict=True)}
    return _overall(decided, truth) | named


def _binary(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of UR-FUNNY and MUStARD: precision, recall, F1 weighted by support; accuracy."""
    weighted = {"average": "weighted", "zero_division": 0.0}
    return {
        "wPrecision": float(precision_score(truth, decided, **weighted)),
        "wRecall": float(recall_score(truth, decided, **weighted)),
        "Acc": float(accuracy_score(truth, decided)),
        "wF1": _f1(truth, decided, average="weighted"),
    }


def _emotion(decided: np.ndarray, truth: np.ndarray, classes: Sequence[str]) -> Metrics:
    """Metrics of speech emotion papers; UAR and macro F1 over the classes that occur.

    Macro F1 averages the classes that occur in the truth or the predictions; UAR, the mean recall,
    averages those in the truth.
    """
    recalls = [_share(decided[truth == c] == c) for c in np.unique(truth)]
    results = {
        "Acc": float(accuracy_score(truth, decided)),
        "UAR": float(np.mean(recalls)),
        "wF1": _f1(truth, decided, average="weighted"),
        "macroF1": _f1(truth, decided, average="macro"),
    }
    each = _f1_each(decided, truth, len(classes))
    return results | {f"F1_{name}": f1 for name, f1 in zip(classes, each, strict=True)}


METRIC_SETS = {
    "mosi": MetricSet("regression", _mosi, ""),
    "sims": MetricSet("regression", _sims, ""),
    "score": MetricSet("regression", _score, ""),
    "mosei_emotion": MetricSet("multilabel", _mosei_emotion, "wF1_average"),
    "iemocap": MetricSet("classification", _iemocap, "wF1"),
    "iemocap_conversation": MetricSet("classification", _one_class, "wF1"),
    "meld": MetricSet("classification", _one_class, "wF1"),
    "binary": MetricSet("classification", _binary, "wF1"),
    "emotion": MetricSet("classification", _emotion, "wF1"),
}
# Metrics that are not fractions: never printed in percent.
UNSCALED = ("MAE", "RMSE", "Corr", "CCC")


def _corr(decided: np.ndarray, truth: np.ndarray) -> float:
    """Pearson's r; NaN if one side is constant or there is only one row."""
    if len(truth) < 2 or np.ptp(decided) == 0 or np.ptp(truth) == 0:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly constant predictions: r is shaky, not wrong
        return float(pearsonr(decided, truth).statistic)


def _rounded_accuracy(decided: np.ndarray, truth: np.ndarray, limit: int) -> float:
    """Accuracy after both are clipped to [-limit, limit] and rounded, half to even."""
    return float(
        accuracy_score(np.round(truth.clip(-limit, limit)), np.round(decided.clip(-limit, limit)))
    )


def _binned_accuracy(decided: np.ndarray, truth: np.ndarray, edges: Sequence[float]) -> float:
    """Accuracy after both are sorted into bins that contain their right edge.

    The edges have the dtype of the values: 0.1 as float32 is slightly larger than as float64 and
    would be in another bin.
    """
    bins = [np.digitize(x, np.asarray(edges, dtype=x.dtype), right=True) for x in (decided, truth)]
    return float(accuracy_score(bins[1], bins[0]))


def _two_classes(decided: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Accuracy and weighted F1 of two classes; NaN without rows."""
    if not len(truth):
        return float("nan"), float("nan")
    return float(accuracy_score(truth, decided)), _f1(truth, decided, average="weighted")


def _f1(truth: np.ndarray, decided: np.ndarray, average: str) -> float:
    return float(f1_score(truth, decided, average=average, zero_division=0.0))


def _f1_each(decided: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """F1 of each class against the rest; NaN for a class in neither truth nor decisions."""
    labels = list(range(classes))
    each = f1_score(truth, decided, labels=labels, average=None, zero_division=np.nan)
    return [float(value) for value in each]


def _overall(decided: np.ndarray, truth: np.ndarray) -> Metrics:
    return {
        "wAcc": float(accuracy_score(truth, decided)),
        "wF1": _f1(truth, decided, average="weighted"),
    }


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if len(hits) else float("nan")


def _averages(results: Metrics, kinds: Sequence[str]) -> Metrics:
    """Prepend the mean of each kind of metric over the emotions where it is defined."""
    means: Metrics = {}
    for kind in kinds:
        values = np.array([value for name, value in results.items() if name.startswith(f"{kind}_")])
        defined = values[~np.isnan(values)]
        means[f"{kind}_average"] = float(defined.mean()) if len(defined) else float("nan")
    return means | results
