"""What generated pseudo labels are worth, where people labelled each modality alone.

SCLG (equations (13) to (15)) makes labels for text, audio and vision out of the multimodal one. A
dataset with human unimodal labels (CH-SIMS, the demonstration) can say whether they came out
right: whether they correlate better with the unimodal truth than the multimodal label does,
above all on the *mismatched* clips, in which the modalities do not point the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

UNIMODAL = {"t": "text", "a": "audio", "v": "vision"}


def add_commands(commands: Any) -> None:
    """Register ``labels``."""
    parser = commands.add_parser(
        "labels",
        help="compare a run's pseudo labels with human unimodal labels",
        description="Correlation with the human labels of text, audio and vision: of the "
        "multimodal label, and of the pseudo labels that the run generated from it. For datasets "
        "that have unimodal labels (demo, sims, simsv2).",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.set_defaults(run=_labels)


def pseudo_label_correlation(
    manifest_rows: pd.DataFrame, predictions: pd.DataFrame
) -> pd.DataFrame:
    """Correlations with the unimodal truth over the training clips.

    Args:
        manifest_rows: columns id, label, label_t, label_a, label_v.
        predictions: a run's predictions; columns id, split, pseudo_t, pseudo_a, pseudo_v.

    Returns:
        One row per set of clips ("all", "mismatched") and modality: ``clips``, ``label`` (r of
        the multimodal label), ``pseudo`` (r of the pseudo label). NaN where a side is constant.

    Raises:
        ValueError: the run generated no pseudo labels, or the dataset has no unimodal ones.
    """
    wanted = [f"label_{m}" for m in UNIMODAL]
    if not set(wanted) <= set(manifest_rows):
        raise ValueError("the dataset has no unimodal labels (label_t, label_a, label_v)")
    if "pseudo_t" not in predictions:
        raise ValueError("the run generated no pseudo labels: semanticmac and self_mm do")
    rows = predictions[predictions["split"] == "train"].merge(manifest_rows, on="id")
    signs_N3 = np.sign(rows[wanted].to_numpy())
    sets = {"all": rows, "mismatched": rows[np.ptp(signs_N3, axis=1) > 0]}
    table = [
        {
            "clips": f"{name} ({len(some)})",
            "modality": modality,
            "label": some["label"].corr(some[f"label_{m}"]),
            "pseudo": some[f"pseudo_{m}"].corr(some[f"label_{m}"]),
        }
        for name, some in sets.items()
        for m, modality in UNIMODAL.items()
    ]
    return pd.DataFrame(table)


def quality_table(worth: pd.DataFrame) -> Table:
    """`pseudo_label_correlation` for a terminal."""
    table = Table(title="correlation with the human unimodal labels", title_justify="left")
    table.add_column("training clips")
    table.add_column("modality")
    for column in ("multimodal label", "pseudo label"):
        table.add_column(column, justify="right")
    for clips, modality, label, pseudo in worth.itertuples(index=False):
        table.add_row(clips, modality, f"{label:.2f}", f"{pseudo:.2f}")
    return table


def _labels(options: argparse.Namespace, console: Console) -> None:
    from manifests import Manifest
    from train.config import load_config

    if not (options.folder / "predictions.parquet").is_file():
        raise ValueError(f"{options.folder}: no finished run is there")
    config = load_config(options.folder / "config.yaml")
    predictions = pd.read_parquet(options.folder / "predictions.parquet")
    console.print(
        quality_table(pseudo_label_correlation(Manifest.load(config.dataset).table, predictions))
    )
