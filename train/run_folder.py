"""Create, read and write the folder of a run.

``runs/<dataset>/<method>/<time>-<name>/`` holds ``config.yaml``, ``card.yaml`` (of the dataset),
``encoder.json`` (recipe of the features), ``environment.json`` and ``log/`` (TensorBoard); during
training ``state/`` (`train.checkpoint`); after training ``model.safetensors`` (best epoch),
``last.safetensors`` (last epoch), ``predictions.parquet`` and, written last, ``metrics.json``.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from safetensors.torch import load_file
from torch import Tensor

from cache import FeatureStore
from cache.store.disk import atomic_write
from manifests import Card
from train import distributed
from train.config import Config, save_config
from train.method import Method
from train.task import Task

PACKAGES = (
    *("semanticmac", "torch", "transformers", "accelerate"),
    *("numpy", "pandas", "zarr", "scikit-learn"),
)


def create_run(
    config: Config, card: Card, features: FeatureStore, origin: Mapping[str, str]
) -> Path:
    """Create the folder of a new run and record its configuration and inputs.

    Rank 0 creates it; all ranks return its path.
    """
    folder = None
    if distributed.rank() == 0:
        folder = _new_folder(config, card.name)
        write_json(folder / "environment.json", environment(origin))
        card.save(folder / "card.yaml")
        names = ("format_version", "dataset", "recipe", "widths")
        made_by = {name: features.attributes[name] for name in names if name in features.attributes}
        write_json(folder / "encoder.json", made_by)  # all that `predict` needs of the store
        save_config(config, folder / "config.yaml")
    (folder, *_) = distributed.all_gather(folder)
    assert folder is not None
    return folder


def provenance_changes(folder: Path, origin: Mapping[str, str]) -> list[str]:
    """Describe which of manifest and store changed since the run was created."""
    then = read_json(folder / "environment.json")
    return [
        f"{what} is {now}, the run was trained with {then[what]}"
        for what, now in origin.items()
        if what.endswith("_digest") and now != then[what]
    ]


def _new_folder(config: Config, dataset: str) -> Path:
    name = config.name or f"seed{config.seed}"
    parent = Path(config.runs) / dataset / config.method
    parent.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    for attempt in range(1, 1000):  # two runs may start within one second
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ValueError(f"{parent / stem}: a thousand runs started in one second")


@contextmanager
def tensorboard(
    accelerator: Accelerator, folder: Path
) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Write TensorBoard files to ``<folder>/log``; yields a function of metrics and epoch."""
    accelerator.project_configuration = ProjectConfiguration(str(folder), str(folder))
    accelerator.log_with = ["tensorboard"]
    accelerator.init_trackers("log")
    try:
        yield lambda results, epoch: accelerator.log(results, step=epoch)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with its parent folders; NaN becomes null."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, f"{text}\n".encode())


def read_json(path: Path) -> Any:
    """Read a JSON file of a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read the metrics and history of a finished run."""
    return dict(read_json(folder / "metrics.json"))


def environment(origin: Mapping[str, str]) -> dict[str, Any]:
    """Describe the environment: ``origin``, versions of packages, git revision of the code."""
    return {
        **origin,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "versions": {package: _version(package) for package in PACKAGES},
        "git": git_revision(),
    }


def predicting_state(method: Method) -> dict[str, Tensor]:
    """Copy all weights and buffers that predicting needs to the CPU."""
    kept = _training_state(method)
    state = method.state_dict()
    return {name: x.cpu().clone() for name, x in state.items() if not name.startswith(kept)}


def training_state(method: Method) -> dict[str, Tensor]:
    """Copy the buffers that only training needs to the CPU."""
    kept = _training_state(method)
    state = method.state_dict()
    return {name: x.cpu().clone() for name, x in state.items() if name.startswith(kept)}


def load_weights(method: Method, folder: Path) -> None:
    """Load the best weights of a run into a method.

    Raises:
        ValueError: the run has no weights, or they do not fit the method.
    """
    path = weights_path(folder)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the run did not finish")
    weights, kept = load_file(path), _training_state(method)
    foreign = ValueError(f"{path} does not fit the model that config.yaml describes")
    try:
        missing, unknown = method.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise foreign from error
    if unknown or not all(name.startswith(kept) for name in missing):
        raise foreign


def _training_state(method: Method) -> tuple[str, ...]:
    return tuple(f"{name}." for name in method.training_state)


def weights_path(folder: Path) -> Path:
    """Return the path of a run's weights."""
    return folder / "model.safetensors"


def prediction_table(
    split: str,
    ids: list[str],
    task: Task,
    truth_NC: Tensor,
    outputs: Mapping[str, Tensor],
    pseudo: Mapping[str, Tensor],
    reported: Mapping[str, Tensor],
) -> pd.DataFrame:
    """Build the table of predictions, one row per utterance of a split.

    Columns: ``id``, ``split``, ``prediction`` and ``truth`` (several classes: one 0/1 column each,
    ``prediction_<class>``), per sub-task its score ``M`` (classes: a probability each,
    ``M_<class>``), the final pseudo label as ``pseudo_S`` (``pseudo_S_<class>``) and
    ``Outputs.reported`` under its own names.
    """
    columns: dict[str, Any] = {"id": ids, "split": split}
    decided = {"prediction": task.scores(outputs["M"]), "truth": truth_NC}
    for what, scores_NC in decided.items():
        names = task.names(task.to_decision(scores_NC.numpy()))
        columns |= {f"{what}{suffix}": values for suffix, values in names.items()}
    for name, output_NC in outputs.items():
        columns |= _score_columns(name, task.scores(output_NC).numpy(), task)
    for name, label_NC in pseudo.items():
        columns |= _score_columns(f"pseudo_{name}", label_NC.cpu().numpy(), task)
    columns |= {name: value_N.numpy() for name, value_N in reported.items()}
    return pd.DataFrame(columns)


def _score_columns(name: str, scores_NC: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    if task.kind == "regression":
        return {name: scores_NC[:, 0]}
    return {f"{name}_{label}": scores_NC[:, c] for c, label in enumerate(task.classes)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def code_version() -> tuple[str | None, str | None]:
    """Return the release and the git revision of this code."""
    return _version("semanticmac"), git_revision()


@lru_cache
def git_revision() -> str | None:
    """Return the commit of this code, with "+" if the working tree is modified; None: unknown.

    Cached: a process runs the code that it loaded, even if later commits follow.
    """
    here = Path(__file__)

    def git(*command: str) -> str:
        line = ["git", "-C", str(here.parent), *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", here.name)  # else the repository is another project's
        return git("describe", "--always", "--abbrev=40", "--dirty=+").strip()
    except (OSError, subprocess.SubprocessError):
        return None
