"""Small published stores with known content, for tests that read, share or convert them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache import Parts, Recipe, Record, publish

WIDTHS = {"audio": 3, "vision": 5}
WITH_TEXT = {**WIDTHS, "text": 4}
SETTINGS: dict[str, Any] = {
    "dataset": "toy",
    "encoder": "none",
    "weights": "00",
    "settings": {"mean": 0.5},
    "sampling": {"fps": 2.0, "window_s": 2.0},
    "preprocess": 1,
    "utterances": "11",
}


def recipe_of(**changes: Any) -> Recipe:
    """The recipe of these stores with other settings."""
    return Recipe.with_one_encoder(**{**SETTINGS, **changes})


RECIPE = recipe_of()
FILES = 36
"""Files of a store of these, without ``checksums.json``."""
Lengths = dict[str, tuple[int, ...]]
LENGTHS: Lengths = {"b": (2, 2), "a": (4, 4), "ü/x": (0, 3), "c": (3, 0), "bad": (0, 0)}
"""Frames of audio and vision (and rows of text) per utterance; none at all is a failed one."""


def features_of(i: str, modality: str, frames: int, width: int) -> np.ndarray:
    """Float32 ``[frames, width]`` that depend on the utterance only, exact in float16."""
    seed = sum(i.encode()) + 7 * (modality == "vision") + 11 * (modality == "text")
    values = np.random.default_rng(seed).integers(-99, 99, (frames, width))
    return values.astype(np.float32) / np.float32(8)


def records_of(lengths: Lengths) -> list[Record]:
    """What an extraction would have recorded."""
    records = []
    for i, (audio, vision, *text) in lengths.items():
        status = "ok" if audio and vision else "no_audio" if vision else "no_video"
        status = status if audio or vision else "failed"
        records.append(
            Record(i, status, "" if status == "ok" else "why", 1.5, audio, vision, *text)
        )
    return records


def write_part(store: Path, records: list[Record], widths: dict[str, int] = WIDTHS) -> Path:
    """Write one part next to ``store``."""
    rows = {
        m: np.concatenate([features_of(r.id, m, r.frames(m), widths[m]) for r in records])
        for m in widths
    }
    return Parts(store).write(records, rows, "float16")


def build_store(
    root: Path,
    lengths: Lengths = LENGTHS,
    widths: dict[str, int] = WIDTHS,
    block: int = 2,
    recipe: Recipe = RECIPE,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Publish ``<root>/toy/<name>.zarr`` from parts of ``block`` utterances."""
    store = root / recipe.dataset / recipe.store_name
    records = records_of(lengths)
    for start in range(0, len(records), block):
        write_part(store, records[start : start + block], widths)
    return publish(store, recipe, widths, {"licence": "none", **(about or {})}, list(lengths))


def tree_of(store: Path) -> dict[str, bytes]:
    """Every file's bytes."""
    files = (path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}
