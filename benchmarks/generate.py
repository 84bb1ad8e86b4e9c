"""Generate a published store of any size with random features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cache import Parts, Recipe, Record, publish

WIDTH = 1024
_BLOCK = 512


def generate(root: Path, utterances: int, spread: float = 1.0) -> Path:
    """Publish a store below ``root``: audio and vision ``[T, 1024]`` float16 per utterance.

    T is log-normal with median 9 and mean 15, like the utterances of CMU-MOSEI at two frames per
    second; with ``spread=0`` it is always 9. The values are random.
    """
    recipe = Recipe.with_one_encoder(
        dataset=f"generated-{utterances}",
        encoder="random",
        weights="none",
        settings={},
        sampling={"fps": 2.0},
        preprocess=1,
        utterances=str(utterances),
    )
    random = np.random.default_rng(0)
    lengths = np.maximum(
        1, np.rint(9 * np.exp(spread * random.standard_normal(utterances)))
    ).astype(int)
    ids = [f"{i:011d}$_${i % 97}" for i in range(utterances)]
    store = root / recipe.dataset / recipe.store_name
    parts = Parts(store)
    for start in range(0, utterances, _BLOCK):
        frames = lengths[start : start + _BLOCK].tolist()
        records = [
            Record(i, "ok", "", n / 2, n, n)
            for i, n in zip(ids[start : start + _BLOCK], frames, strict=True)
        ]
        features = {
            m: random.standard_normal((sum(frames), WIDTH), np.float32) for m in ("audio", "vision")
        }
        parts.write(records, features, "float16")
    widths = {"audio": WIDTH, "vision": WIDTH}
    return publish(store, recipe, widths, {"licence": "none"}, ids)
