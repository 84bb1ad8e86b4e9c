"""Runs evaluated again from their predictions, alone and compared with each other."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, ttest_rel

from manifests import Card
from train.__main__ import main
from train.study.predictions import read_predictions
from train.study.significance import Resampling, compare, intervals, mcnemar_p, paired_p

CARDS = {
    "score": Card("score", "Scores", "regression", range=[-3, 3]),
    "one": Card("one", "One", "classification", classes=["sad", "glad", "mad"], metrics="meld"),
    "many": Card("many", "Many", "multilabel", ["a", "b"], ["a", "b"], metrics="mosei_emotion"),
}
FEW = Resampling(12)


def write_run(folder, card, decided, truth, ids=None):
    """The two files that are read, as training writes them; rows in a shuffled order."""
    folder.mkdir(parents=True)
    ids = ids or [f"u{i:03d}" for i in range(len(truth))]
    columns = {"id": ids, "split": "test"}
    for what, values in (("prediction", decided), ("truth", truth)):
        if card.task == "multilabel":
            columns |= {f"{what}_{name}": values[:, c] for c, name in enumerate(card.classes)}
        else:
            columns[what] = values
    for name in card.classes:
        columns[f"M_{name}"] = 0.5
    if not card.classes:
        columns["M"] = decided
    table = pd.DataFrame(columns)
    others = table.assign(split="train", id="t-" + table["id"])
    table = pd.concat([table, others]).sample(frac=1, random_state=len(folder.name))
    table.to_parquet(folder / "predictions.parquet", index=False)
    card.save(folder / "card.yaml")
    return folder


def names(index):
    return np.array(CARDS["one"].classes, dtype=object)[index]


@pytest.fixture(scope="module")
def scores():
    """Truth, a good and a poor predictor."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-3, 3, 120).astype(np.float32)
    noise = rng.normal(size=(2, 120)).astype(np.float32)
    return truth, truth + 0.4 * noise[0], truth + 1.2 * noise[1]


def test_figures_and_intervals_of_scores(tmp_path, scores):
    truth, good, _ = scores
    run = read_predictions(write_run(tmp_path / "run", CARDS["score"], good, truth))
    error = np.abs(good - truth)
    assert run.compute_metrics()["MAE"] == pytest.approx(error.mean())
    np.testing.assert_array_equal(run.errors(), error)
    found = intervals(run, Resampling(150))
    assert list(found) == list(run.compute_metrics())
    # The bootstrap of a mean is nearly the normal interval.
    wide = float(1.96 * error.std() / math.sqrt(len(error)))
    assert found["MAE"].low == pytest.approx(error.mean() - wide, abs=0.3 * wide)
    assert found["MAE"].high == pytest.approx(error.mean() + wide, abs=0.3 * wide)
    assert intervals(run, FEW) == intervals(run, FEW) != intervals(run, Resampling(12, seed=1))


def test_a_better_run_is_distinguished_from_chance(tmp_path, scores):
    truth, good, poor = scores
    a, b = (
        read_predictions(write_run(tmp_path / name, CARDS["score"], decided, truth))
        for name, decided in (("good", good), ("the poor", poor))
    )
    found = compare(a, b, Resampling(50))
    error = found["MAE"]
    assert error.first.value == a.compute_metrics()["MAE"]
    assert error.difference.value == a.compute_metrics()["MAE"] - b.compute_metrics()["MAE"]
    assert error.difference.low < error.difference.value < error.difference.high < 0
    assert error.p <= 2 / 51 + 1e-9  # the least that 50 permutations can give, two-sided
    assert found["Corr"].difference.low > 0
    assert paired_p([a.run], [b.run]) <= 2 / 10_000 + 1e-9


def test_p_is_near_that_of_the_t_test(tmp_path, scores):
    truth, good, _ = scores
    shift = np.where(np.arange(120) % 9 == 0, 0.25, 0.0).astype(np.float32)
    other = good + shift * np.sign(good - truth)
    runs = [
        write_run(tmp_path / name, CARDS["score"], decided, truth)
        for name, decided in (("a", good), ("b", other + 0.05 * np.sin(np.arange(120))))
    ]
    errors = [read_predictions(run).errors() for run in runs]
    expected = ttest_rel(*errors).pvalue
    assert paired_p(runs[:1], runs[1:]) == pytest.approx(expected, rel=0.3, abs=0.01)


def test_the_same_run_twice_differs_by_chance_only(tmp_path, scores):
    truth, good, _ = scores
    run = read_predictions(write_run(tmp_path / "run", CARDS["score"], good, truth))
    for each in compare(run, run, FEW).values():
        assert (each.difference.value, each.difference.low, each.difference.high) == (0, 0, 0)
        assert each.p == 1
    assert paired_p([run.run, run.run], [run.run]) == 1


def test_mcnemar(tmp_path):
    # Nine utterances that only the first gets right, two that only the second does.
    truth = np.zeros(30, dtype=int)
    first, second = truth.copy(), truth.copy()
    second[:9], first[9:11] = 1, 2
    a, b = (
        read_predictions(write_run(tmp_path / name, CARDS["one"], names(guess), names(truth)))
        for name, guess in (("a", first), ("bb", second))
    )
    assert mcnemar_p(a, b) == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar_p(a, a) == 1
    np.testing.assert_array_equal(a.errors(), first != truth)


def test_a_figure_without_ground_is_undefined(tmp_path):
    truth = np.array([0, 1] * 10)  # no utterance is mad
    guess = np.where(np.arange(20) < 12, truth, 1 - truth)
    a, b = (
        read_predictions(write_run(tmp_path / name, CARDS["one"], names(decided), names(truth)))
        for name, decided in (("a", guess), ("b", truth))
    )
    alone = intervals(a, FEW)["F1_mad"]
    assert all(math.isnan(number) for number in (alone.value, alone.low, alone.high))
    pair = compare(a, b, FEW)["F1_mad"]
    assert math.isnan(pair.p)
    assert math.isnan(pair.difference.low)


def test_several_classes_at_once(tmp_path):
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (40, 2))
    guess = np.where(rng.random((40, 2)) < 0.8, truth, 1 - truth)
    a, b = (
        read_predictions(write_run(tmp_path / name, CARDS["many"], decided, truth))
        for name, decided in (("a", guess), ("b", rng.integers(0, 2, (40, 2))))
    )
    np.testing.assert_allclose(a.errors(), (guess != truth).mean(1))
    found = compare(a, b, FEW)["wF1_average"]
    assert found.difference.low <= found.difference.value <= found.difference.high
    with pytest.raises(ValueError, match="is for classification, not for multilabel"):
        mcnemar_p(a, b)


def test_runs_that_cannot_be_compared(tmp_path, scores):
    truth, good, _ = scores
    a = read_predictions(write_run(tmp_path / "a", CARDS["score"], good, truth))
    others = {
        "2 utterances are in only one of them, u119, x": {
            "ids": [f"u{i:03d}" for i in range(119)] + ["x"],
            "truth": truth,
            "card": CARDS["score"],
        },
        "the truth of 1 utterances differs, u007": {
            "truth": np.where(np.arange(120) == 7, 0, truth).astype(np.float32),
            "card": CARDS["score"],
        },
        "dataset 'score' and 'other'": {
            "truth": truth,
            "card": Card("other", "Other", "regression", range=[-3, 3]),
        },
    }
    for place, (says, made) in enumerate(others.items()):
        run = write_run(tmp_path / str(place), decided=good, **made)
        with pytest.raises(ValueError, match=says):
            compare(a, read_predictions(run), FEW)
        with pytest.raises(ValueError, match=says):
            paired_p([a.run], [run])


def test_predictions_that_cannot_be_read(tmp_path, scores):
    truth, good, _ = scores
    run = write_run(tmp_path / "run", CARDS["score"], good, truth)
    with pytest.raises(ValueError, match=r"'meld' is for classification.*use one of mosi, sims"):
        read_predictions(run, metric_set="meld")
    with pytest.raises(ValueError, match="unknown metric set 'mose'"):
        read_predictions(run, metric_set="mose")
    with pytest.raises(ValueError, match="no rows of the split 'valid'"):
        read_predictions(run, "valid")
    (run / "card.yaml").unlink()
    with pytest.raises(ValueError, match="--set NAME"):
        read_predictions(run)
    assert read_predictions(run, metric_set="sims").compute_metrics()["Acc5"] > 0
    with pytest.raises(ValueError, match="not the folder of a finished run"):
        read_predictions(tmp_path)
    one = write_run(tmp_path / "one", CARDS["score"], good[:1], truth[:1])
    with pytest.raises(ValueError, match="at least two utterances"):
        intervals(read_predictions(one), FEW)


def test_commands(tmp_path, capsys):
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 60)
    runs = []
    for name, right in (("a", 0.9), ("b", 0.5)):
        guess = np.where(rng.random(60) < right, truth, (truth + 1) % 3)
        run = write_run(tmp_path / name, CARDS["one"], names(guess), names(truth))
        runs.append(str(run))
    out = tmp_path / "numbers.json"
    few = ["--resamples", "10", "--json", str(out)]
    assert main(["metrics", runs[0], *few]) == 0
    output = capsys.readouterr().out
    assert "test split, 60 utterances, meld" in output
    assert "F1_glad" in output
    numbers = json.loads(out.read_text())
    exact = read_predictions(tmp_path / "a").compute_metrics()
    assert {name: each["value"] for name, each in numbers["figures"].items()} == exact
    assert main(["compare", *runs, *few]) == 0
    output = capsys.readouterr().out
    assert "McNemar's exact test of the accuracies: p = 0.0" in output
    numbers = json.loads(out.read_text())
    assert numbers["runs"] == runs
    assert numbers["figures"]["wAcc"]["difference"]["value"] > 0
    assert numbers["figures"]["wAcc"]["p"] == pytest.approx(2 / 11)  # the least of 10 draws
    assert main(["compare", *runs, "--set", "iemocap", "--resamples", "2"]) == 0
    assert "sAcc_average" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, scores, capsys):
    truth, good, _ = scores
    run = str(write_run(tmp_path / "run", CARDS["score"], good, truth))
    for arguments, says in (
        (["metrics", str(tmp_path)], "not the folder of a finished run"),
        (["metrics", run, "--set", "binary"], "use one of mosi, sims"),
        (["compare", run, str(tmp_path)], "not the folder of a finished run"),
        (["compare", run, run, "--split", "valid"], "no rows of the split"),
        (["metrics", run, "--resamples", "0"], "--resamples is 0"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
