"""A run's folder: what is written there, and how it is found again.

``runs/<dataset>/<method>/<time>-<name>/`` holds ``config.yaml``, ``metrics.json``,
``predictions.parquet``, ``model.safetensors``, ``environment.json`` and ``log/`` (TensorBoard).
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.config import Config
from train.method import Method
from train.task import Task

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "pandas", "zarr", "scikit-learn")


def new_folder(config: Config, dataset: str) -> Path:
    """Create the folder of a run that starts now."""
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; NaN becomes null."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    aside.write_text(text + "\n", encoding="utf-8")
    aside.replace(path)


def read_json(path: Path) -> Any:
    """Read one of a run's JSON files."""
    return json.loads(path.read_text(encoding="utf-8"))


def environment(device: str) -> dict[str, Any]:
    """With what a run is made: versions of packages, device, git revision of this code."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {package: _version(package) for package in PACKAGES},
        "git": _git_revision(),
    }


def predicting_state(method: Method) -> dict[str, Tensor]:
    """A copy of all weights and buffers that predicting needs, on the CPU."""
    skipped = tuple(f"{name}." for name in method.training_state)
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in method.state_dict().items()
        if not name.startswith(skipped)
    }


def save_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``model.safetensors``."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights_path(folder))


def load_weights(method: Method, folder: Path) -> None:
    """Fill a method with the weights of a run.

    Raises:
        ValueError: the run has no weights, or they belong to another model.
    """
    path = weights_path(folder)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the run did not finish")
    try:
        method.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model that config.yaml describes") from error


def weights_path(folder: Path) -> Path:
    """Where a run keeps its weights."""
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
    """One row per utterance of a split.

    Columns: ``id``, ``split``, ``prediction`` and ``truth`` (several classes: one 0/1 column each,
    ``prediction_<class>``), per sub-task its score ``M`` (classes: a probability each,
    ``M_<class>``), the final pseudo label as ``pseudo_S`` (``pseudo_S_<class>``) and what the
    method reports of each utterance, under the method's names.
    """
    columns: dict[str, Any] = {"id": ids, "split": split}
    decided = {"prediction": task.scores(outputs["M"]), "truth": truth_NC}
    for what, scores_NC in decided.items():
        names = task.names(task.decide(scores_NC.numpy()))
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


def _git_revision() -> str | None:
    """The commit this code stands at, with "+" when the working tree differs from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    try:
        said = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None
