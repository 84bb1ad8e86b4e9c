"""Compare generated pseudo labels with human unimodal labels.

SCLG (equations (13) to (15)) generates labels for text, audio and vision from the multimodal label.
On a dataset with human unimodal labels (CH-SIMS, the demonstration dataset) their quality can be
measured: they should correlate better with the human labels than the multimodal label does, above
all on the *mismatched* clips, whose unimodal labels differ in sign.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.table import Table

MODALITY_NAMES = {"t": "text", "a": "audio", "v": "vision"}


def pseudo_label_correlation(
    manifest_rows: pd.DataFrame, predictions: pd.DataFrame
) -> pd.DataFrame:
    """Return the correlations with the human unimodal labels over the training clips.

    Args:
        manifest_rows: columns id, label, label_t, label_a, label_v.
        predictions: a run's predictions; columns id, split, pseudo_t, pseudo_a, pseudo_v.

    Returns:
        One row per set of clips ("all", "mismatched") and modality: ``clips``, ``label`` (r of
        the multimodal label), ``pseudo`` (r of the pseudo label). NaN where a column is constant.

    Raises:
        ValueError: the run generated no pseudo labels, or the dataset has no unimodal labels.
    """
    columns = [f"label_{m}" for m in MODALITY_NAMES]
    if not set(columns) <= set(manifest_rows):
        raise ValueError("the dataset has no unimodal labels (label_t, label_a, label_v)")
    if "pseudo_t" not in predictions:
        raise ValueError(
            "the run generated no pseudo labels: semanticmac and self_mm generate them"
        )
    rows = predictions[predictions["split"] == "train"].merge(manifest_rows, on="id")
    signs_N3 = np.sign(rows[columns].to_numpy())
    sets = {"all": rows, "mismatched": rows[np.ptp(signs_N3, axis=1) > 0]}
    table = [
        {
            "clips": f"{name} ({len(clips)})",
            "modality": modality,
            "label": clips["label"].corr(clips[f"label_{m}"]),
            "pseudo": clips[f"pseudo_{m}"].corr(clips[f"label_{m}"]),
        }
        for name, clips in sets.items()
        for m, modality in MODALITY_NAMES.items()
    ]
    return pd.DataFrame(table)


def quality_table(correlations: pd.DataFrame) -> Table:
    """Format the result of `pseudo_label_correlation` for a terminal."""
    table = Table(title="correlation with the human unimodal labels", title_justify="left")
    table.add_column("training clips")
    table.add_column("modality")
    for column in ("multimodal label", "pseudo label"):
        table.add_column(column, justify="right")
    for clips, modality, label, pseudo in correlations.itertuples(index=False):
        table.add_row(clips, modality, f"{label:.2f}", f"{pseudo:.2f}")
    return table
