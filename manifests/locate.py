"""Find a dataset's manifest, without importing pandas: a wrong name is reported at once."""

import re
from pathlib import Path

DATA = Path("data")


def find_manifest(dataset: str | Path) -> Path:
    """The Parquet file of a dataset: a folder, or a bare name such as ``"demo"`` for ``data/demo``.

    Raises:
        ValueError: no such file; the message names the command that makes it.
    """
    folder = Path(dataset)
    if isinstance(dataset, str) and re.fullmatch(r"\w[\w-]*", dataset):
        folder = DATA / dataset
    path = folder / "manifest.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `python -m manifests build NAME` makes it")
    return path
