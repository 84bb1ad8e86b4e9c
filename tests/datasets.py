"""A small dataset on disk, manifest and store, for tests of training."""

from pathlib import Path

import numpy as np
import pandas as pd

from cache import Parts, Recipe, Record, publish
from cache.store.recipe import digest_of_segments
from manifests import Card, Manifest

WIDTHS = {"audio": 3, "vision": 4, "text": 6}
SPLITS = ["train"] * 48 + ["valid"] * 12 + ["test"] * 12
# Small enough that a run takes about a second; text features replace a language model.
FAST = [
    *("text.source=features", "width=16", "perceiver.layers=1", "sgfi.layers=1", "sclg.knn=4"),
    *("train.batch_size=8", "train.epochs=2", "optim.lr=5e-3", "train.cpu=true"),
]


def write_scores(root: Path, name: str = "scores", mismatched: float = 0.4) -> Card:
    """``<root>/data/<name>`` and its store: scores that show in text, sound and picture.

    The label is 0.4 t + 0.3 a + 0.3 v; in the share ``mismatched`` of the utterances the three
    are drawn apart, in the others they are one. Each modality shows its own score, with noise.
    """
    rng = np.random.default_rng(0)
    n = len(SPLITS)
    one, apart = rng.uniform(-3, 3, (n, 1)), rng.uniform(-3, 3, (n, 3))
    t, a, v = np.where(rng.random((n, 1)) < mismatched, apart, one).round(1).T
    ids = [f"u{i:03d}" for i in rng.permutation(n)]
    card = Card(name, "Scores", "regression", range=[-3, 3], preset="", unimodal=True)
    table = {"id": ids, "video": "", "split": SPLITS, "text": "", "label": 0.4 * t + 0.3 * (a + v)}
    table |= {"label_t": t, "label_a": a, "label_v": v}
    manifest = Manifest(card, pd.DataFrame(table))
    manifest.save(root / "data" / name)
    rows: dict[str, list[np.ndarray]] = {m: [] for m in WIDTHS}
    records = []
    for i, (utterance, *scores) in enumerate(zip(ids, t, a, v, strict=True)):
        frames = {"text": 1 + i % 5, "audio": 2, "vision": 2}
        for (m, count), score in zip(frames.items(), scores, strict=True):
            rows[m].append(score + 0.3 * rng.normal(size=(count, WIDTHS[m])))
        counts = {f"{m}_frames": count for m, count in frames.items()}
        records.append(Record(utterance, "ok", "", 1.0, **counts))
    store = root / "stores" / name / "store.zarr"
    values = {m: np.concatenate(arrays).astype(np.float32) for m, arrays in rows.items()}
    Parts(store).write(records, values, "float16")
    recipe = Recipe.with_one_encoder(name, "none", "0" * 64, {}, {"fps": 0}, 1, "0" * 64)
    publish(store, recipe, WIDTHS, {"segments": digest_of_segments(manifest.cuts)}, ids)
    return card
