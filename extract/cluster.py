"""Start and connect to Dask workers: local processes, a running scheduler, or SLURM jobs."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

import dask
import torch
import yaml
from dask.distributed import Client, LocalCluster, Nanny
from dask.system import CPU_COUNT
from distributed.utils import get_mp_context

from extract.settings import ClusterSpec
from manifests.printing import get_logger

log = get_logger(__name__)

IN_FLIGHT = 2
"""Blocks per worker at a time: one is decoded while the other is encoded.

The worker's other threads (its share of the cores) run ffmpeg.
"""

LINUX = sys.platform == "linux"

_CONFIG = {
    # Fail on the first death: halving a block is cheaper than losing four workers to it.
    "distributed.scheduler.allowed-failures": 0,
    # A worker holds nothing to spill. It must not pause above 80 percent either: if the encoder
    # itself is that large, it would pause forever. Above 95 percent it is terminated.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # Workers are forked from a process that has imported everything, so that a dead worker is
    # replaced at once. macOS's libraries do not survive a fork.
    "distributed.worker.multiprocessing-method": "forkserver" if LINUX else "spawn",
}
_PRELOAD = ["extract.scheduler", "extract.encoders.embedded", "extract.encoders.imagebind"]


def worker_count(cluster: ClusterSpec, device: str) -> int:
    """Number of workers; without ``cluster.workers`` one per GPU, or one per core."""
    if cluster.workers is not None:
        return cluster.workers
    if device.startswith("cuda"):
        return max(1, len(gpus()))
    return CPU_COUNT


def threads(workers: int) -> int:
    """Threads per worker on this machine: its share of the cores, at least one per block."""
    return max(IN_FLIGHT, CPU_COUNT // workers)


def gpus() -> list[str]:
    """The GPUs of this machine, as spelled in ``CUDA_VISIBLE_DEVICES``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


class GpuNanny(Nanny):
    """A nanny whose worker sees one GPU: number (worker's name) modulo (number of GPUs)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        names = gpus() or [""]
        options["env"] = {"CUDA_VISIBLE_DEVICES": names[options["name"] % len(names)]}
        super().__init__(*args, **options)


def slurm_cluster(profile: Path) -> Any:
    """Create a ``dask_jobqueue.SLURMCluster`` that has no jobs yet.

    Raises:
        ValueError: dask-jobqueue is not installed, or the profile is invalid.
    """
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise ValueError("--slurm needs dask-jobqueue: pip install 'semanticmac[slurm]'")
    with _defer_sigint():  # the import replaces the process's handler of SIGINT
        from dask_jobqueue import SLURMCluster

    try:
        options = yaml.safe_load(profile.read_text(encoding="utf-8"))
        prologue = [*options.pop("job_script_prologue", []), *_exports()]
        with dask.config.set(_CONFIG):
            return SLURMCluster(**options, job_script_prologue=prologue)
    except (OSError, AttributeError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{profile}: {error}; the documentation's page extraction.md has an example"
        ) from error


def _exports() -> list[str]:
    """Shell lines that set Dask's memory settings in a job, overriding its configuration file."""
    return [
        f"export DASK_{key.upper().replace('.', '__').replace('-', '_')}={value}"
        for key, value in _CONFIG.items()
        if key.startswith("distributed.worker.memory.")
    ]


@contextmanager
def connect(
    spec: ClusterSpec, device: str, blocks: int, on_message: Callable[[str], None]
) -> Iterator[Client]:
    """Connect to the workers; they are started and ended here unless a scheduler runs already."""
    count = max(1, min(worker_count(spec, device), blocks))
    cluster: Any = None
    with dask.config.set(_CONFIG):  # until the end: dead workers are replaced at any time
        try:
            with _defer_sigint():
                if spec.slurm is not None:
                    cluster = slurm_cluster(spec.slurm)
                    # not scale(): a job that reaches its wall time is replaced
                    cluster.adapt(minimum_jobs=count, maximum_jobs=count)
                elif spec.scheduler is None:
                    cluster = _local_cluster(spec, device, count)
            with _client(cluster or spec.scheduler) as client:
                if importlib.util.find_spec("bokeh") is not None:
                    on_message(f"dashboard: {client.dashboard_link}")
                yield client
        finally:
            if cluster is not None:
                try:
                    cluster.close()
                except Exception as error:  # Dask's nanny cannot end a worker that is just starting
                    log.warning("workers did not shut down cleanly: %r", error)


def _local_cluster(spec: ClusterSpec, device: str, workers: int) -> LocalCluster:
    if LINUX:
        get_mp_context().set_forkserver_preload(_PRELOAD)
        with _block_sigint(), _same_import_path():
            forkserver.ensure_running()
    try:
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=threads(workers),
            processes=True,
            # by default the workers share the memory equally, independent of their threads
            **({"memory_limit": spec.memory_limit} if spec.memory_limit else {}),
            worker_class=GpuNanny if device.startswith("cuda") else Nanny,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"the workers could not be started: {cause}") from error


@contextmanager
def _same_import_path() -> Iterator[None]:
    """Make Python processes started inside import from the same folders as this one.

    By itself, the fork server would search the current folder first: an ``extract.py`` there
    would be imported instead of the package.
    """
    names = ("PYTHONSAFEPATH", "PYTHONPATH")
    before = {name: os.environ[name] for name in names if name in os.environ}
    folders = [str(Path(folder).absolute()) for folder in sys.path]
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(folders)}
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ |= before


@contextmanager
def _block_sigint() -> Iterator[None]:
    """Block SIGINT for child processes started inside; it is delivered to this process on exit."""
    resource_tracker.ensure_running()  # it would unblock the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _defer_sigint() -> Iterator[None]:
    """Delay Ctrl-C until the end of the ``with``: Dask cannot close a half-started cluster.

    A second Ctrl-C is not delayed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def _client(target: Any) -> Client:
    try:
        return Client(target)
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {target}: {error}") from error
