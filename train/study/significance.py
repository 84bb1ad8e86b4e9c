"""Runs judged by what they predicted: every figure with its interval, and one run against another.

Intervals are of a bootstrap, p of a paired permutation test, both SciPy's, over the utterances of a
split. They tell how far a figure may be chance of these utterances, not of the seed of a training.
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
class Estimate:
    """A figure and the interval that holds it; NaN where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One figure of two runs, their difference (first less second) and its p, two-sided."""

    first: Estimate
    second: Estimate
    difference: Estimate
    p: float


@dataclass(frozen=True)
class Resampling:
    """How often utterances are drawn again, from which seed, and how sure an interval is."""

    count: int = 1000
    seed: int = 0
    confidence: float = 0.95


def intervals(predictions: Predictions, how: Resampling) -> dict[str, Estimate]:
    """Every figure with its percentile bootstrap interval, utterances drawn with replacement.

    A draw may lack a rare class and leave a figure undefined; such draws do not count for it.
    """
    values = predictions.figures()

    def redrawn(index: np.ndarray) -> np.ndarray:
        return _values(predictions, predictions.decided[index], predictions.truth[index])

    low, high = _percentiles(redrawn, len(predictions.ids), how)
    return {
        name: Estimate(values[name], float(low[i]), float(high[i])) for i, name in enumerate(values)
    }


def compare(first: Predictions, second: Predictions, how: Resampling) -> dict[str, Difference]:
    """Two runs on the same utterances, figure by figure.

    The intervals are of a paired bootstrap: a draw takes the same utterances of both runs. p is of
    a paired permutation test: were the runs alike, the two predictions for an utterance could be
    exchanged.

    Raises:
        ValueError: the runs cannot be compared, see `check_pair`.
    """
    check_pair(first, second)
    rows, names = len(first.ids), list(first.figures())
    both = np.concatenate([first.decided, second.decided])

    def redrawn(index: np.ndarray) -> np.ndarray:
        a, b = (_values(first, run.decided[index], first.truth[index]) for run in (first, second))
        return np.concatenate([a, b, a - b])

    def exchanged(index: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        # Rows of `both`: as observed, or a batch of permutations of it.
        if index.ndim > 1:
            return np.stack([exchanged(i, j, axis) for i, j in zip(index, other, strict=True)])
        a, b = (_values(first, both[at.astype(int)], first.truth) for at in (index, other))
        return a - b

    low, high = _percentiles(redrawn, rows, how)
    test = permutation_test(
        (np.arange(rows), np.arange(rows, 2 * rows)),
        exchanged,
        permutation_type="samples",
        vectorized=True,
        n_resamples=how.count,
        batch=100,
        rng=np.random.default_rng(how.seed),
    )
    undefined = np.isnan(test.null_distribution).any(0) | np.isnan(test.statistic)
    p = np.where(undefined, np.nan, test.pvalue)
    observed = redrawn(np.arange(rows))
    estimates = [Estimate(*map(float, each)) for each in zip(observed, low, high, strict=True)]
    a, b, difference = (estimates[k * len(names) :][: len(names)] for k in range(3))
    return {
        name: Difference(a[i], b[i], difference[i], float(p[i])) for i, name in enumerate(names)
    }


def mcnemar_p(first: Predictions, second: Predictions) -> float:
    """Exact McNemar test: of what one classifier alone gets right, does each get half.

    Raises:
        ValueError: the runs cannot be compared, or do not choose one class.
    """
    check_pair(first, second)
    if first.task != "classification":
        raise ValueError(f"McNemar's test is for one class of several, not for {first.task}")
    right, other = (run.decided == run.truth for run in (first, second))
    alone, only_other = int((right & ~other).sum()), int((other & ~right).sum())
    if alone + only_other == 0:
        return 1.0
    return float(binomtest(alone, alone + only_other).pvalue)


def paired_p(first: Sequence[Path], second: Sequence[Path], split: str = "test") -> float:
    """Two-sided p that two groups of runs (the seeds of two methods) err equally.

    A paired permutation test over utterances of `Predictions.errors`, each averaged over the runs
    of a group: of the MAE, or of the accuracy.

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
    return np.array(list(compute(run.metrics, decided, truth, run.classes).values()))


def _percentiles(
    statistic: Callable[[np.ndarray], np.ndarray], rows: int, how: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    if rows < 2:
        raise ValueError("an interval needs two utterances at least")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a figure undefined in every draw
        drawn = bootstrap(
            (np.arange(rows),),
            statistic,
            vectorized=False,
            method="percentile",
            n_resamples=how.count,
            rng=np.random.default_rng(how.seed),
        ).bootstrap_distribution
        tail = (1 - how.confidence) / 2
        low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=-1)
    return low, high
