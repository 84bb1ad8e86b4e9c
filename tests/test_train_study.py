"""Several runs in one table: seeds, ablations, methods, a search; the quality of labels."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.datasets import FAST, write_scores
from train.__main__ import main
from train.config import config_digest, make_config
from train.study.ablations import ABLATIONS
from train.study.inputs import parse_seeds, select_names
from train.study.label_quality import pseudo_label_correlation
from train.study.study import format_summary, summary


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_scores(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(method: str = "semanticmac") -> list[Path]:
    return sorted(Path(f"runs/scores/{method}").glob("*"))


def test_seeds_are_averaged_and_every_run_is_kept(place, capsys):
    assert main(["fit", "dataset=scores", *FAST, "seeds=2"]) == 0
    figures = [json.loads((run / "metrics.json").read_text())["test"]["MAE"] for run in runs()]
    table = pd.read_csv("runs/scores/studies/seeds/table.csv", index_col="variant")
    assert len(figures) == 2
    assert figures[0] != figures[1]
    assert table.loc["semanticmac", "MAE"] == pytest.approx(np.mean(figures))
    assert table.loc["semanticmac", "MAE_std"] == pytest.approx(abs(np.diff(figures)[0]) / 2**0.5)
    assert "±" in Path("runs/scores/studies/seeds/table.md").read_text(encoding="utf-8")
    assert "±" in capsys.readouterr().out


def test_finished_runs_are_not_trained_again(place, capsys):
    assert main(["fit", "dataset=scores", *FAST, "name=alone"]) == 0
    only = [*FAST, "ablations=no-gate"]
    assert main(["ablations", "dataset=scores", *only]) == 0
    assert "full, seed 1" in (output := capsys.readouterr().out)
    assert output.count("(trained before)") == 1  # the full model, by the plain run before
    before = runs()
    assert len(before) == 2
    assert main(["ablations", "dataset=scores", *only]) == 0
    assert runs() == before
    assert main(["ablations", "dataset=scores", *only, "optim.lr=1e-3"]) == 0
    assert len(runs()) == 4


def test_a_variant_that_cannot_be_trained_does_not_end_the_others(place, capsys):
    keys = ["dataset=scores", *FAST, "methods=mean,lmf", "options.rank=4"]  # only lmf has a rank
    assert main(["compare-methods", *keys]) == 3
    output = capsys.readouterr().out
    assert "failed: mean: method=mean has no options, given: options.rank" in output
    table = pd.read_csv("runs/scores/studies/compare-methods/table.csv", index_col="variant")
    assert list(table.index) == ["lmf"]


def test_methods_are_compared_in_one_table(place):
    keys = ["dataset=scores", *FAST, "methods=mean,text", "seeds=2"]
    assert main(["compare-methods", *keys]) == 0
    folder = Path("runs/scores/studies/compare-methods")
    table = pd.read_csv(folder / "table.csv", index_col="variant")
    assert set(table.index) == {"semanticmac", "mean", "text"}
    assert table["MAE"].idxmax() == "mean"
    assert table["parameters"].idxmax() == "semanticmac"
    assert np.isnan(table.loc["semanticmac", "p"])
    assert table.loc["mean", "p"] < 0.05
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "\\pm" in (folder / "table.tex").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["ablations", "compare-methods", "search", "fit"])
@pytest.mark.parametrize("key", ["seed=3", "name=mine"])
def test_a_key_of_one_run_is_refused_for_several(place, capsys, command, key):
    assert main([command, "dataset=scores", *FAST, "seeds=2", key]) == 1
    assert "is for one run" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_several_runs_want_one_process(place, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("ablations", "search"):
        assert main([command, "dataset=scores", *FAST]) == 1
        assert "several runs need a single process" in capsys.readouterr().err


def test_every_ablation_is_one_key_that_changes_the_configuration(capsys):
    assert main(["ablations", "--list"]) == 0
    listing = capsys.readouterr().out
    digests = set()
    for name, (key, _) in ABLATIONS.items():
        assert name in listing
        assert key in listing
        assert key.count("=") == (name != "full")
        digests.add(config_digest(make_config(None, [key] if key else [])))
    assert len(digests) == len(ABLATIONS)


def test_a_search_ranks_by_validation_and_resumes(place, capsys):
    keys = ["dataset=scores", *FAST]
    assert main(["search", *keys, "trials=2"]) == 0
    first = pd.read_csv("runs/scores/studies/search/trials.csv")
    assert len(first) == 2
    assert (first["value"].diff().dropna() <= 0).all()
    assert "width" not in first, "a key that is given is not drawn"
    defaults = first[first["number"] == 0].iloc[0]
    assert (defaults["sgfi.heads"], defaults["sccl.tau"]) == (4, 0.5)
    assert main(["search", *keys, "trials=4"]) == 0
    second = pd.read_csv("runs/scores/studies/search/trials.csv").drop(columns="value")
    assert len(second.drop(columns="number").drop_duplicates()) == 4
    assert not list(place.rglob("*.safetensors"))
    assert main(["search", *keys, "trials=1", "optim.lr=0.01"]) == 0  # a separate study
    assert len(pd.read_csv("runs/scores/studies/search/trials.csv")) == 1


def test_a_failed_trial_counts_and_the_search_continues(place, capsys):
    keys = ["dataset=scores", *FAST, "width=32", "perceiver.layers=40"]  # drawn heads fit 32
    assert main(["search", *keys, "trials=1", "optim.lr=1e30", "optim.clip=0"]) == 3
    assert "failed: the loss term" in capsys.readouterr().out
    assert main(["search", *keys, "trials=1", "optim.lr=1e30", "optim.clip=0"]) == 0


def test_a_search_resumes_after_out_of_memory_and_ctrl_c(place, capsys, monkeypatch):
    """Out of memory fails the trial; an interrupted trial does not count."""
    keys = ["dataset=scores", *FAST]

    def fail(error: BaseException) -> None:
        def train(*arguments):
            raise error

        monkeypatch.setattr("train.fit.train", train)

    fail(KeyboardInterrupt())
    assert main(["search", *keys, "trials=1"]) == 130
    fail(torch.OutOfMemoryError("no room"))
    assert main(["search", *keys, "trials=1"]) == 3
    assert "1/1  failed: no room" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert main(["search", *keys, "trials=2"]) == 0
    trials = pd.read_csv("runs/scores/studies/search/trials.csv")
    assert trials["number"].tolist() == [2]
    assert "the defaults: #1" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "seeds"), [("3", (1, 2, 3)), ("7,2", (7, 2)), ("1", (1,))])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "1,1", "many", "", "1,"])
def test_wrong_seeds(text):
    with pytest.raises(ValueError, match=f"seeds={text}: use a count or a list"):
        parse_seeds(text)


def test_choosing():
    assert select_names(None, ["a", "b"], "method", "a") == ["a", "b"]
    assert select_names("c", ["a", "b", "c"], "method", "a") == ["a", "c"]
    with pytest.raises(ValueError, match="unknown method 'd'; choose from all, a, b"):
        select_names("d", ["a", "b"], "method", "a")


def test_labels_that_follow_their_modality_correlate_better(place):
    rows = pd.DataFrame(
        {
            "id": list("abcdef"),
            "label": [1.0, 2, 3, -1, -2, 0.5],
            "label_t": [1.0, 2, 3, 1, 2, -3],
            "label_a": [1.0, 2, 3, -1, -2, 3],
            "label_v": [1.0, 2, 3, -1, -2, 3],
        }
    )
    predictions = pd.DataFrame({"id": list("abcdefg"), "split": ["train"] * 6 + ["test"]})
    for m in "tav":
        predictions[f"pseudo_{m}"] = [*rows[f"label_{m}"], 9.0]
    found = pseudo_label_correlation(rows, predictions).set_index(["clips", "modality"])
    assert list(found.index[[0, 3]]) == [("all (6)", "text"), ("mismatched (3)", "text")]
    assert found["pseudo"].to_numpy() == pytest.approx(1)
    # label (-1, -2, 0.5) against text (1, 2, -3): covariance -3.25 over sqrt(14 * 3.1666...)
    expected = np.corrcoef([-1, -2, 0.5], [1, 2, -3])[0, 1]
    assert found.loc[("mismatched (3)", "text"), "label"] == pytest.approx(expected)


def test_the_labels_command(place, capsys):
    assert main(["fit", "dataset=scores", *FAST, "train.epochs=6"]) == 0
    assert "correlation with the human unimodal labels" in capsys.readouterr().out
    assert main(["labels", str(runs()[0])]) == 0
    assert "mismatched" in capsys.readouterr().out
    assert main(["labels", "nowhere"]) == 1


def test_summary_of_one_seed_has_no_spread(place):
    assert main(["fit", "dataset=scores", *FAST]) == 0
    cells = format_summary(summary({"a": runs(), "b": runs()}, "a"), seeds=1)
    assert "±" not in cells.to_string()
    assert list(cells["p"]) == ["", "1.000"]


def test_a_linear_probe_reads_frames_and_tokens(place, capsys):
    assert main(["fit", "dataset=scores", *FAST]) == 0
    probe = ["fit", "dataset=scores", *FAST, "method=probe", "train.epochs=20", "optim.lr=0.05"]
    assert main([*probe, "options.modality=vision"]) == 0
    assert main([*probe, "options.modality=audio", f"options.run={runs()[0]}"]) == 0
    weights = [load_file(run / "model.safetensors") for run in runs("probe")]
    assert list(weights[0]) == ["predict.bias", "predict.weight"]
    trained = load_file(runs()[0] / "model.safetensors")
    assert weights[1]["predict.weight"].shape == (1, 16)
    for key in (key for key in trained if key.startswith("audio.")):
        assert trained[key].equal(weights[1][f"perceiver.{key.removeprefix('audio.')}"])
    metrics = json.loads((runs("probe")[0] / "metrics.json").read_text())
    assert metrics["test"]["MAE"] < 0.9 * metrics["trivial"]["MAE"]
    assert main([*probe, "options.run=nowhere"]) == 1
    assert main([*probe, "options.modality=smell"]) == 1
    assert "not the folder of a finished run" in capsys.readouterr().err
