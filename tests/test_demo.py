"""What the demonstration has to show, from the first clip to the last table, with its own seed."""

from pathlib import Path

import pandas as pd

from extract.__main__ import main as extract
from manifests import Manifest
from manifests.__main__ import main as manifests
from train.__main__ import main as train
from train.study.label_quality import pseudo_label_correlation


def test_more_than_one_modality_is_needed_and_generated_labels_follow_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert manifests(["build", "demo"]) == 0
    assert extract(["demo"]) == 0
    keys = ["dataset=demo", "methods=text,audio,vision,mean", "train.cpu=true", "train.epochs=8"]
    assert train(["compare-methods", *keys]) == 0

    mae = pd.read_csv("runs/demo/studies/compare-methods/table.csv", index_col="variant")["MAE"]
    assert mae["semanticmac"] < 0.75 * mae[["text", "audio", "vision", "mean"]].min()

    (run,) = Path("runs/demo/semanticmac").glob("*")
    predictions = pd.read_parquet(run / "predictions.parquet")
    found = pseudo_label_correlation(Manifest.load("demo").table, predictions)
    mismatched = found[found["clips"].str.startswith("mismatched")]
    assert len(mismatched) == 3
    assert (mismatched["pseudo"] > mismatched["label"] + 0.05).all()
