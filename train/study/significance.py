"""Bootstrap confidence intervals and paired significance tests over saved predictions.

The samples are drawn over the utterances of a split, by SciPy's ``bootstrap`` and
``permutation_test``. They measure the variation over utterances, not over the seeds of training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, bootstrap, permutation_test

from train.metrics import compute
from train.study.predictions import Predictions, check_pair, read_predictions


@dataclass(frozen=True)
class Interval:
    """A metric with its confidence interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One metric of two runs, its difference (first minus second) and the two-sided p."""

    first: Interval
    second: Interval
    difference: Interval
    p: float


@dataclass(frozen=True)
class Resampling:
    """The number of samples, their seed, and the confidence level of the intervals."""

    count: int = 1000
    seed: int = 0
    confidence: float = 0.95


def intervals(predictions: Predictions, resampling: Resampling) -> dict[str, Interval]:
    """Return every metric with its percentile bootstrap interval.

    Utterances are drawn with replacement. Samples in which a metric is undefined (a rare class is
    absent) are ignored for this metric.
    """
    values = predictions.compute_metrics()

    def resampled(index: np.ndarray) -> np.ndarray:
        return _values(predictions, predictions.decided[index], predictions.truth[index])

    low, high = _percentiles(resampled, len(predictions.ids), resampling)
    return {
        name: Interval(values[name], float(low[i]), float(high[i])) for i, name in enumerate(values)
    }


def compare(
    first: Predictions, second: Predictions, resampling: Resampling
) -> dict[str, Comparison]:
    """Compare two runs on the same utterances, metric by metric.

    The intervals come from a paired bootstrap: a sample contains the same utterances of both runs.
    p comes from a paired permutation test, whose null hypothesis is that the two predictions for an
    utterance are exchangeable.

    Raises:
        ValueError: the runs cannot be compared, see `check_pair`.
    """
    check_pair(first, second)
    rows, names = len(first.ids), list(first.compute_metrics())
    both = np.concatenate([first.decided, second.decided])

    def resampled(index: np.ndarray) -> np.ndarray:
        a, b = (_values(first, run.decided[index], first.truth[index]) for run in (first, second))
        return np.concatenate([a, b, a - b])

    def exchanged(index: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        # Indices into `both`: the observed order, or a batch of permutations.
        if index.ndim > 1:
            return np.stack([exchanged(i, j, axis) for i, j in zip(index, other, strict=True)])
        a, b = (_values(first, both[at.astype(int)], first.truth) for at in (index, other))
        return a - b

    low, high = _percentiles(resampled, rows, resampling)
    test = permutation_test(
        (np.arange(rows), np.arange(rows, 2 * rows)),
        exchanged,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resampling.count,
        batch=100,
        rng=np.random.default_rng(resampling.seed),
    )
    undefined = np.isnan(test.null_distribution).any(0) | np.isnan(test.statistic)
    p = np.where(undefined, np.nan, test.pvalue)
    observed = resampled(np.arange(rows))
    measured = [Interval(*map(float, each)) for each in zip(observed, low, high, strict=True)]
    a, b, difference = (measured[k * len(names) :][: len(names)] for k in range(3))
    return {
        name: Comparison(a[i], b[i], difference[i], float(p[i])) for i, name in enumerate(names)
    }


def mcnemar_p(first: Predictions, second: Predictions) -> float:
    """Return p of McNemar's exact test, over the utterances that one classifier alone gets right.

    Raises:
        ValueError: the runs cannot be compared, or are not classifications.
    """
    check_pair(first, second)
    if first.task != "classification":
        raise ValueError(f"McNemar's test is for classification, not for {first.task}")
    right, other = (run.decided == run.truth for run in (first, second))
    alone, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    if alone + only_other == 0:
        return 1.0
    return float(binomtest(alone, alone + only_other).pvalue)


def paired_p(first: Sequence[Path], second: Sequence[Path], split: str = "test") -> float:
    """Return the two-sided p that two groups of runs (seeds of two methods) have equal errors.

    A paired permutation test of `Predictions.errors` over utterances, averaged over the runs of a
    group. The statistic is the difference of the MAE, or of the accuracy.

    Raises:
        ValueError: the runs cannot be compared, see `check_pair`.
    """
    groups = [[read_predictions(run, split) for run in runs] for runs in (first, second)]
    for run in (*groups[0][1:], *groups[1]):
        check_pair(groups[0][0], run)
    a, b = (np.mean([run.errors() for run in runs], axis=0) for runs in groups)
    test = permutation_test(
        (a, b),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        batch=500,  # bounds the memory: 500 x N numbers at once
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _values(run: Predictions, decided: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array(list(compute(run.metric_set, decided, truth, run.classes).values()))


def _percentiles(
    statistic: Callable[[np.ndarray], np.ndarray], rows: int, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    if rows < 2:
        raise ValueError("an interval needs at least two utterances")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric undefined in every sample
        drawn = bootstrap(
            (np.arange(rows),),
            statistic,
            vectorized=False,
            method="percentile",
            n_resamples=resampling.count,
            rng=np.random.default_rng(resampling.seed),
        ).bootstrap_distribution
        tail = (1 - resampling.confidence) / 2
        low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=-1)
    return low, high
