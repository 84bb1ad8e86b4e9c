"""Checkpoints: everything needed to resume a run exactly, written atomically.

``<run>/state/<epoch>-<step>/`` is written as a temporary folder, synced and renamed; the previous
checkpoint is kept until then. It holds::

    progress.json           epoch, step, history, the best epoch, the gradient scaler
    weights.safetensors     the current weights, as far as predicting needs them
    best.safetensors        the same, of the epoch with the best validation score
    optimiser.safetensors   AdamW's moments
    process-<rank>.json     per process: Python's and NumPy's random states, loss sums
    process-<rank>.safetensors   PyTorch's random states, the method's training state
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache.store.disk import remove_tree, sync
from train import distributed, run_folder
from train.loss_meter import LossMeter
from train.method import Method
from train.optimizer import OptimizerStep


@dataclass
class TrainState:
    """The position and history of a run.

    Attributes:
        epoch: the current epoch, from 1.
        step: its finished steps.
        elapsed: seconds that they took.
        best_epoch: the epoch with the best validation score so far; 0 before the first.
        best_score: its score; higher is better.
        best_loss: its validation loss; among epochs with equal scores the lowest is best.
        history: per finished epoch the seconds, the mean of each loss term, the validation metrics.
    """

    epoch: int = 1
    step: int = 0
    elapsed: float = 0.0
    best_epoch: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    def ends(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or the last ``patience`` of them brought no better score."""
        finished = self.epoch - 1
        waited = finished - self.best_epoch if self.best_epoch else 0
        return finished >= epochs or bool(patience and waited >= patience)


class Checkpointer:
    """Saves and restores the state of a run.

    Args:
        folder: the run's folder.
        method: after `Method.begin`.
        optimizer: the method's optimizer.
        meter: the sums of the loss terms.
    """

    def __init__(
        self, folder: Path, method: Method, optimizer: OptimizerStep, meter: LossMeter
    ) -> None:
        self.folder = folder / "state"
        self.method, self.optimizer, self.meter = method, optimizer, meter
        self._best: dict[str, Tensor] | None = None
        self._saved = time.monotonic()
        self._place: tuple[int, int] | None = None

    def keep_best(self) -> None:
        """Copy the current weights as the best ones; the next `save` writes them."""
        if distributed.rank() == 0:
            self._best = run_folder.predicting_state(self.method)

    def save_if_due(self, progress: TrainState, seconds: float) -> None:
        """Call `save` if the last one was at least ``seconds`` ago on any rank."""
        due = time.monotonic() - self._saved >= seconds
        if any(distributed.all_gather(due)):  # clocks differ; all save or none
            self.save(progress)

    def save(self, progress: TrainState) -> None:
        """Write a checkpoint, unless there is one of this epoch and step.

        All processes call this at the same step; each writes its own random states and buffers.
        """
        place = progress.epoch, progress.step
        if place == self._place:
            return
        temporary, before = self.folder / ".aside", newest(self.folder)
        leads = distributed.rank() == 0
        if leads:
            remove_tree(temporary)
            temporary.mkdir(parents=True)
        distributed.barrier()
        self._write_own(temporary)
        if leads:
            scaler = self.optimizer.accelerator.scaler
            shared = asdict(progress) | {
                "processes": distributed.world_size(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            weights = run_folder.predicting_state(self.method)
            _write_json(temporary / "progress.json", shared)
            _write_tensors(temporary / "weights.safetensors", weights)
            _write_tensors(temporary / "optimiser.safetensors", self.optimizer.state_dict())
            if self._best is not None:
                _write_tensors(temporary / "best.safetensors", self._best)
            elif before is not None and (before / "best.safetensors").exists():
                link(before / "best.safetensors", temporary / "best.safetensors")
            sync(temporary)
        distributed.barrier()
        if leads:
            temporary.replace(self.folder / "{:05d}-{:08d}".format(*place))
            sync(self.folder)
            if before is not None:
                remove_tree(before)
        distributed.barrier()
        self._best, self._saved, self._place = None, time.monotonic(), place

    def restore(self) -> TrainState | None:
        """Restore the newest checkpoint; None without a checkpoint.

        Raises:
            ValueError: it was written by another number of processes.
        """
        here = newest(self.folder)
        if here is None:
            return None
        shared = run_folder.read_json(here / "progress.json")
        then, now = shared.pop("processes"), distributed.world_size()
        if then != now:
            raise ValueError(f"{here} was saved by {then} processes, not {now}: start {then} again")
        scaler = shared.pop("scaler")
        if scaler and self.optimizer.accelerator.scaler:
            self.optimizer.accelerator.scaler.load_state_dict(scaler)
        own = load_file(_own(here, "safetensors"))
        weights = load_file(here / "weights.safetensors")
        random_states = {name: own.pop(name) for name in list(own) if name.startswith("random.")}
        self.method.load_state_dict(weights | own)
        self.optimizer.load_state_dict(load_file(here / "optimiser.safetensors"))
        kept = run_folder.read_json(_own(here, "json"))
        self.meter.load_state_dict(kept["loss"])
        self._restore_random(kept, random_states)
        at = TrainState(**shared)
        self._place = at.epoch, at.step
        return at

    def publish(self) -> None:
        """Link the best and the last weights into the run's folder, for all processes to read."""
        here = newest(self.folder)
        assert here is not None, "an epoch ends with a checkpoint"
        if distributed.rank() == 0:
            run = self.folder.parent
            link(here / "best.safetensors", run_folder.weights_path(run))
            link(here / "weights.safetensors", run / "last.safetensors")
        distributed.barrier()

    def _write_own(self, temporary: Path) -> None:
        own = run_folder.training_state(self.method)
        own["random.cpu"] = torch.get_rng_state()
        device = self.optimizer.accelerator.device
        if device.type != "cpu":
            own["random.device"] = torch.get_device_module(device).get_rng_state()
        numpy = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        kept = {"loss": self.meter.state_dict(), "python": random.getstate(), "numpy": numpy}
        _write_tensors(_own(temporary, "safetensors"), own)
        _write_json(_own(temporary, "json"), kept)

    def _restore_random(self, kept: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        version, words, gauss = kept["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(kept["numpy"])
        torch.set_rng_state(tensors["random.cpu"])
        device = self.optimizer.accelerator.device
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(tensors["random.device"])


class InterruptHandler:
    """Delays Ctrl-C to the end of the step; a second Ctrl-C interrupts at once.

    Args:
        every: steps between two checks whether any process was interrupted.
    """

    def __init__(self, every: int) -> None:
        self._asked, self._every = False, every

    def __enter__(self) -> InterruptHandler:
        self._before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread():  # only this thread may set it
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def after(self, step: int) -> bool:
        """Whether to end after step ``step`` of the run."""
        return (distributed.world_size() == 1 or step % self._every == 0) and self.asked()

    def asked(self) -> bool:
        """Whether any process was interrupted."""
        return any(distributed.all_gather(self._asked))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if distributed.world_size() == 1:  # a launcher sends the signal again
            signal.signal(signal.SIGINT, signal.default_int_handler)


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a run's ``state/``; None: no checkpoint."""
    return max(folder.glob("[0-9]*"), default=None)


def link(source: Path, target: Path) -> None:
    """Hard-link a file; copy it where the file system has no hard links."""
    temporary = target.with_name(f".{target.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        sync(temporary)
    temporary.replace(target)


def _own(folder: Path, kind: str) -> Path:
    return folder / f"process-{distributed.rank()}.{kind}"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    sync(path)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")  # floats are restored exactly
    sync(path)
