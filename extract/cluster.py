"""Blocks through Dask workers, whatever happens to the workers.

A block whose worker died is halved and runs again, down to the one utterance that kills workers:
that one fails with a reason, the others do not notice.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import torch
import yaml
from dask.distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    Nanny,
    get_worker,
    wait,
)
from dask.system import CPU_COUNT
from dask.utils import parse_bytes
from distributed.utils import get_mp_context

from cache import Record
from extract.ahead import DECODERS
from extract.block import extract_block
from extract.job import Job, Utterance

log = logging.getLogger(__name__)

TRIES = 3
"""How often an utterance on its own may end its worker before it counts as the culprit."""

IN_FLIGHT = 2
"""Blocks a worker has at a time: one is decoded while the other is encoded. Its further threads,
its share of the cores, run ffmpegs."""

LOST_IN_A_ROW = 12 * IN_FLIGHT
"""Blocks lost with their workers and none finished between: more than one culprit can explain."""

IDLE_DEATHS = 4
"""Workers ended over their memory without a block: the encoder alone is too large for them."""

POLL_S = 0.5

LINUX = sys.platform == "linux"

REMEDY = " (use fewer --workers or a larger --memory-limit)"

_CONFIG = {
    # One death is enough to know: halving a block is cheaper than losing four workers on it.
    "distributed.scheduler.allowed-failures": 0,
    # A worker holds nothing worth spilling, and one that pauses above 80 percent would do so for
    # ever when the encoder itself is that large. Above 95 percent it is ended.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # Workers are forked from a process that has imported everything: one that replaces a dead one
    # is there at once. macOS's libraries do not survive a fork.
    "distributed.worker.multiprocessing-method": "forkserver" if LINUX else "spawn",
}
_IMPORTED = ["extract.cluster", "extract.encoders.embedded", "extract.encoders.imagebind"]


@dataclass(frozen=True)
class Machines:
    """Where blocks run.

    Attributes:
        workers: processes (or SLURM jobs); None: one per GPU with ``device="cuda"``, else per core.
        memory_limit: of each local worker, like ``8GB``; None shares the memory among them.
        scheduler: address of a running Dask scheduler, instead of processes on this machine.
        slurm: profile of SLURM jobs (YAML, arguments of ``SLURMCluster``), likewise.
    """

    workers: int | None = None
    memory_limit: str | None = None
    scheduler: str | None = None
    slurm: Path | None = None

    def __post_init__(self) -> None:
        if self.scheduler and self.slurm:
            raise ValueError("choose --scheduler or --slurm, not both")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers is {self.workers}; choose at least 1")
        if self.memory_limit is not None:
            try:
                size = parse_bytes(self.memory_limit)
            except ValueError:
                raise ValueError(f"--memory-limit {self.memory_limit!r}: write 8GB") from None
            if size < 100e6:
                raise ValueError(f"--memory-limit {self.memory_limit}: no worker can start in that")

    @property
    def elsewhere(self) -> bool:
        """Whether the workers are not processes that this one starts on its own machine."""
        return self.scheduler is not None or self.slurm is not None

    def count(self, device: str) -> int:
        """How many workers that makes."""
        if self.workers is not None:
            return self.workers
        if device.startswith("cuda"):
            return max(1, len(gpus()))
        return CPU_COUNT


def threads(workers: int) -> int:
    """Of each of so many workers on this machine: its share of the cores, enough for its blocks."""
    return max(IN_FLIGHT, CPU_COUNT // workers)


def gpus() -> list[str]:
    """The GPUs of this machine, as ``CUDA_VISIBLE_DEVICES`` spells them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


class GpuNanny(Nanny):
    """Starts a worker that sees one GPU only: the worker's name modulo their number."""

    def __init__(self, *args: Any, **options: Any) -> None:
        names = gpus() or [""]
        options["env"] = {"CUDA_VISIBLE_DEVICES": names[options["name"] % len(names)]}
        super().__init__(*args, **options)


def slurm_cluster(profile: Path) -> Any:
    """A ``dask_jobqueue.SLURMCluster`` without jobs.

    Raises:
        ValueError: dask-jobqueue is not installed, or the profile is unusable.
    """
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise ValueError("--slurm needs dask-jobqueue: pip install 'semanticmac[slurm]'")
    from dask_jobqueue import SLURMCluster

    try:
        options = yaml.safe_load(profile.read_text(encoding="utf-8"))
        with dask.config.set(_CONFIG):
            return SLURMCluster(**options)
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{profile}: {error}; docs/extraction.md has an example") from error


@contextmanager
def connect(
    machines: Machines, device: str, blocks: int, say: Callable[[str], None]
) -> Iterator[Client]:
    """A client of the workers, which are started and ended here unless a scheduler runs already."""
    count = max(1, min(machines.count(device), blocks))
    cluster: Any = None
    with dask.config.set(_CONFIG):  # to the end: workers are replaced all the time
        if machines.scheduler is not None:
            target: Any = machines.scheduler
        elif machines.slurm is not None:
            target = cluster = slurm_cluster(machines.slurm)
            cluster.scale(jobs=count)
        else:
            if LINUX:
                get_mp_context().set_forkserver_preload(_IMPORTED)
            target = cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=threads(count),
                processes=True,
                # left out, the workers share the memory equally, whatever their threads
                **({"memory_limit": machines.memory_limit} if machines.memory_limit else {}),
                worker_class=GpuNanny if device.startswith("cuda") else Nanny,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
        try:
            client = Client(target)
        except OSError as error:
            raise ValueError(f"no Dask scheduler answers at {target}: {error}") from error
        try:
            if importlib.util.find_spec("bokeh") is not None:
                say(f"dashboard: {client.dashboard_link}")
            yield client
        finally:
            client.close()
            if cluster is not None:
                try:
                    cluster.close()
                except Exception as error:  # Dask's nanny cannot end a worker that just starts
                    log.warning("the workers did not end in order: %r", error)


@dataclass(frozen=True)
class _Task:
    block: Sequence[Utterance]
    deaths: int = 0  # of workers, when it ran on its own
    ended_before: int = 0  # workers over their memory before it ran on its own


def run(
    client: Client,
    job: Job,
    blocks: Sequence[Sequence[Utterance]],
    give_up: Callable[..., Record],
    on_stage: Callable[[str, list[str]], None],
) -> Generator[list[Record]]:
    """Extract blocks, in whatever order they finish; an empty list now and then as a sign of life.

    Args:
        client: of the workers.
        job: what the blocks have in common.
        blocks: what to extract.
        give_up: ``(utterance, reason) -> Record`` keeps a failed row for an utterance that ended
            its worker time and again.
        on_stage: told the ids of those that are ``"decoded"`` or ``"encoded"``, as they are, from
            the client's thread.

    Raises:
        ValueError: workers die whatever they do, a worker's machine is at fault or has another
            encoder, or a feature does not fit the stored type.
    """
    waiting = deque(_Task(block) for block in blocks)
    suspects: deque[_Task] = deque()
    running: dict[Future, _Task] = {}
    lost = in_a_row = 0
    client.subscribe_topic(_topic(job), lambda event: on_stage(*event[1]))
    try:
        while waiting or suspects or running:
            # No more than they work on: a worker that dies takes little else with it.
            at_once = sum(min(IN_FLIGHT, count) for count in client.nthreads().values())
            free = max(1, at_once) - len(running)
            for _ in range(min(free, len(waiting))):
                task = waiting.popleft()
                running[_submit(client, job, task)] = task
            if not running:  # one suspect at a time: nobody is blamed for a neighbour
                task = replace(suspects.popleft(), ended_before=_ended_by_memory(client))
                running[_submit(client, job, task)] = task
            finished = _first_done(list(running))
            if _ended_by_memory(client) > lost + IDLE_DEATHS:
                raise ValueError(f"workers die before they can work: {_why(client)}")
            if not finished:
                yield []
            for future in finished:
                task = running.pop(future)
                try:
                    records = future.result()
                except KilledWorker:
                    lost, in_a_row = lost + 1, in_a_row + 1
                    if in_a_row >= LOST_IN_A_ROW:
                        raise ValueError(
                            f"{in_a_row} blocks in a row were lost with their workers: "
                            f"{_why(client)}; finished blocks are kept, run the command again"
                        ) from None
                    log.info("a worker died over %s", [u.id for u in task.block])
                    if len(task.block) > 1:
                        half = len(task.block) // 2
                        waiting.extend(
                            _Task(part) for part in (task.block[:half], task.block[half:])
                        )
                    elif task.deaths + 1 < TRIES:
                        suspects.append(_Task(task.block, task.deaths + 1))
                    else:
                        why = _why(client, task.ended_before)
                        reason = f"ended its worker {TRIES} times: {why}"
                        yield [give_up(task.block[0], reason)]
                else:
                    if isinstance(records, str):
                        raise ValueError(records)
                    in_a_row = 0
                    yield records
                future.release()
    finally:
        client.unsubscribe_topic(_topic(job))
        client.cancel(list(running))


def _submit(client: Client, job: Job, task: _Task) -> Future:
    return client.submit(_on_worker, job, task.block, pure=False)


def _topic(job: Job) -> str:
    """Under which the workers tell how far they are; a scheduler may serve several runs."""
    return f"extract {job.store}"


def _on_worker(job: Job, block: Sequence[Utterance]) -> list[Record] | str:
    worker = get_worker()

    def on_stage(stage: str, ids: list[str]) -> None:
        worker.log_event(_topic(job), (stage, ids))

    return _attempt(job, block, max(DECODERS, worker.state.nthreads), on_stage)


def _attempt(
    job: Job,
    block: Sequence[Utterance],
    decoders: int,
    on_stage: Callable[[str, list[str]], None],
) -> list[Record] | str:
    """The records, or what went wrong in words.

    As words because a client that cannot unpack an exception or its traceback waits for ever.
    """
    try:
        return extract_block(job, block, decoders, on_stage)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error} (on {socket.gethostname()}); finished blocks are kept, run again"
    except Exception as error:
        log.exception("a block failed")
        return f"{type(error).__name__} in a worker: {error}"


def _first_done(futures: list[Future]) -> list[Future]:
    """Those that are finished, after a short while at most."""
    try:
        return list(wait(futures, timeout=POLL_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _ended_by_memory(client: Client) -> int:
    """How many workers were ended since the start because they were above their limit."""
    return len(client.get_events("worker-restart-memory"))


def _why(client: Client, ended_before: int = 0) -> str:
    if _ended_by_memory(client) > ended_before:
        return f"out of memory{REMEDY}"
    return f"it was killed, by the system perhaps for want of memory{REMEDY}"
