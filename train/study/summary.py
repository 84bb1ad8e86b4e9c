"""Summary of a finished run: its metrics on the test split and the quality of its pseudo labels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from manifests import Manifest
from manifests.console import Console
from train import run_folder
from train.config import load_config
from train.report import metrics_table, print_plain
from train.study.label_quality import pseudo_label_correlation, quality_table


def show_run(folder: Path, console: Console) -> None:
    """Print the metrics of a finished run, read from its folder and its dataset's manifest.

    Raises:
        ValueError: ``folder`` is not a run, or its dataset has no manifest.
    """
    manifest = Manifest.load(load_config(folder).dataset)
    saved = run_folder.read_metrics(folder)
    print_plain(
        console, f"\n{manifest.card.title}: test split, weights of epoch {saved['best_epoch']}"
    )
    console.print(metrics_table({"model": saved["test"], "trivial": saved["trivial"]}))
    if saved["reported"]:
        means = ", ".join(f"{name} {mean:.3f}" for name, mean in saved["reported"].items())
        print_plain(
            console, f"mean over the test split: {means}; per utterance in predictions.parquet"
        )
    if manifest.card.unimodal:
        predictions = pd.read_parquet(folder / "predictions.parquet")
        if "pseudo_t" in predictions:
            console.print(quality_table(pseudo_label_correlation(manifest.table, predictions)))
    print_plain(console, f"run: {folder}")
