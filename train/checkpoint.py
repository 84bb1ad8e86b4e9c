"""A run's state: all that it needs to go on as if it had never stopped, whole or not there.

``<run>/state/<epoch>-<step>/`` is written aside, synced and renamed; the one before is kept until
then. It holds::

    progress.json           epoch, step, history, the best epoch, the gradient scaler
    weights.safetensors     what predicting needs, as it is now
    best.safetensors        the same in the epoch that the validation split chose
    optimiser.safetensors   AdamW's moments
    process-<rank>.json     one of each process: Python's and NumPy's random states, loss sums
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
    """How far a run has come.

    Attributes:
        epoch: the epoch under way, from 1.
        step: how many of its steps are done.
        elapsed: seconds spent on them.
        best_epoch: the epoch that the validation split chose so far; 0 before the first.
        best_score: its score, highest best.
        best_loss: its validation loss; of epochs with one score the lowest is best.
        history: per finished epoch the seconds, the mean of each loss term, the validation figures.
    """

    epoch: int = 1
    step: int = 0
    elapsed: float = 0.0
    best_epoch: int = 0
    best_score: float = -math.inf
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    def ends(self, epochs: int, patience: int) -> bool:
        """Whether no epoch follows: all are done, or ``patience`` of them brought nothing."""
        finished = self.epoch - 1
        waited = finished - self.best_epoch if self.best_epoch else 0
        return finished >= epochs or bool(patience and waited >= patience)


class Checkpointer:
    """Saves and restores a run.

    Args:
        folder: the run's.
        method: after `Method.begin`.
        optimizer: its optimiser.
        meter: the sums of its loss terms.
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
        """Make the present weights the best ones, in memory until the next `save`."""
        if distributed.rank() == 0:
            self._best = run_folder.predicting_state(self.method)

    def save_if_due(self, progress: TrainState, seconds: float) -> None:
        """`save`, unless the last one is less than so many seconds ago."""
        due = time.monotonic() - self._saved >= seconds
        if any(distributed.all_gather(due)):  # clocks differ; all save or none
            self.save(progress)

    def save(self, progress: TrainState) -> None:
        """Write the state.

        All processes call this at the same step; each writes what only it knows. What is saved
        already, at this epoch and step, is not written again.
        """
        place = progress.epoch, progress.step
        if place == self._place:
            return
        aside, before = self.folder / ".aside", newest(self.folder)
        leads = distributed.rank() == 0
        if leads:
            remove_tree(aside)
            aside.mkdir(parents=True)
        distributed.barrier()
        self._write_own(aside)
        if leads:
            scaler = self.optimizer.accelerator.scaler
            shared = asdict(progress) | {
                "processes": distributed.world_size(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            weights = run_folder.predicting_state(self.method)
            _write_json(aside / "progress.json", shared)
            _write_tensors(aside / "weights.safetensors", weights)
            _write_tensors(aside / "optimiser.safetensors", self.optimizer.state_dict())
            if self._best is not None:
                _write_tensors(aside / "best.safetensors", self._best)
            elif before is not None and (before / "best.safetensors").exists():
                link(before / "best.safetensors", aside / "best.safetensors")
            sync(aside)
        distributed.barrier()
        if leads:
            aside.replace(self.folder / "{:05d}-{:08d}".format(*place))
            sync(self.folder)
            if before is not None:
                remove_tree(before)
        distributed.barrier()
        self._best, self._saved, self._place = None, time.monotonic(), place

    def restore(self) -> TrainState | None:
        """Go back to the newest state; None where there is none yet.

        Raises:
            ValueError: another number of processes wrote it.
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
        """Put the best and the last weights into the run's folder, for all processes to read."""
        here = newest(self.folder)
        assert here is not None, "an epoch ends with a state"
        if distributed.rank() == 0:
            run = self.folder.parent
            link(here / "best.safetensors", run_folder.weights_path(run))
            link(here / "weights.safetensors", run / "last.safetensors")
        distributed.barrier()

    def _write_own(self, aside: Path) -> None:
        own = run_folder.training_state(self.method)
        own["random.cpu"] = torch.get_rng_state()
        device = self.optimizer.accelerator.device
        if device.type != "cpu":
            own["random.device"] = torch.get_device_module(device).get_rng_state()
        numpy = np.random.get_state(legacy=False)
        numpy["state"]["key"] = numpy["state"]["key"].tolist()
        kept = {"loss": self.meter.state_dict(), "python": random.getstate(), "numpy": numpy}
        _write_tensors(_own(aside, "safetensors"), own)
        _write_json(_own(aside, "json"), kept)

    def _restore_random(self, kept: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        version, words, gauss = kept["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(kept["numpy"])
        torch.set_rng_state(tensors["random.cpu"])
        device = self.optimizer.accelerator.device
        if device.type != "cpu":
            torch.get_device_module(device).set_rng_state(tensors["random.device"])


class InterruptHandler:
    """Ctrl-C asks the loop to end after a whole step; a second one does not wait for that.

    Args:
        every: steps between two at which several processes agree whether one was asked.
    """

    def __init__(self, every: int) -> None:
        self._asked, self._every = False, every

    def __enter__(self) -> InterruptHandler:
        self._before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread():  # no other may set it
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def after(self, step: int) -> bool:
        """Whether to end after this step of the run."""
        return (distributed.world_size() == 1 or step % self._every == 0) and self.asked()

    def asked(self) -> bool:
        """Whether any process was asked to end."""
        return any(distributed.all_gather(self._asked))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if distributed.world_size() == 1:  # a launcher passes on what the terminal has sent already
            signal.signal(signal.SIGINT, signal.default_int_handler)


def newest(folder: Path) -> Path | None:
    """The latest whole state in a run's ``state/``."""
    return max(folder.glob("[0-9]*"), default=None)


def link(source: Path, target: Path) -> None:
    """One file under two names; a copy where the file system knows no links."""
    aside = target.with_name(f".{target.name}")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
        sync(aside)
    aside.replace(target)


def _own(folder: Path, kind: str) -> Path:
    return folder / f"process-{distributed.rank()}.{kind}"


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    sync(path)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")  # numbers come back bit for bit
    sync(path)
