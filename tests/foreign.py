"""Files as other programs write them, for tests that convert stores."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch

from cache import FeatureStore
from cache.convert.import_features import import_source, read


def rows_of(store: Path) -> dict[str, tuple[list, ...]]:
    """Every utterance's rows in the store's modalities, by id."""
    cache = FeatureStore.open(store)
    features = cache.select(cache.ids)
    rows = {}
    for place, i in enumerate(cache.ids):
        batch = features.batch(torch.tensor([place]))
        rows[i] = tuple(batch[m].values.tolist() for m in cache.widths)
    return rows


def back(path: Path, form: str, root: Path, **options) -> Path:
    return import_source(read(path, form), form, root, **{"dataset": "toy"} | options)


def manifest_of(folder: Path, ids: list[str]) -> Path:
    """A Parquet table that shares the utterances out among the splits."""
    table = pd.DataFrame(
        {
            "id": ids,
            "split": [("train", "valid", "test")[n % 3] for n in range(len(ids))],
            "text": [f"words of {i}" for i in ids],
            "label": [(-1.5, 0.0, 2.0)[n % 3] for n in range(len(ids))],
            "label_t": 0.5,
        }
    )
    path = folder / "manifest.parquet"
    table.sample(frac=1, random_state=0).to_parquet(path)  # its order means nothing
    return path


def write_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def split_of(ids, audio, vision, **more) -> dict:
    labels = np.linspace(-1, 1, len(ids), dtype=np.float32)
    return {"id": ids, "audio": audio, "vision": vision, "regression_labels": labels} | more


def mmsa_file(tmp_path: Path, train: dict, **splits) -> Path:
    return write_pickle(tmp_path / "features.pkl", {"train": train, **splits})


def ramp(*shape: int) -> np.ndarray:
    """Non-zero numbers, exact in float16."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def write_h5(path: Path, found: dict) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in found.items():
            file[name] = value
    return path


def write_npz(path: Path, found: dict) -> Path:
    np.savez(path, **found)
    return path


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MARK = "touched"


GOOD = split_of(["a", "b"], ramp(2, 3, 2), ramp(2, 3, 2))
RAGGED_FILE = {
    "ids": ["b", "a"],
    "audio/values": ramp(3, 2),
    "audio/offsets": np.array([0, 1, 3]),
}
