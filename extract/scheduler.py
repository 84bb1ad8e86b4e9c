"""Run blocks on Dask workers, and run them again when workers die.

A block whose worker died is halved and runs again, down to the single utterance that kills workers:
that utterance fails with a reason, the others are extracted.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from dask.distributed import Client, Future, KilledWorker, LocalCluster, get_worker, wait

from cache import Record
from extract.block import extract_block
from extract.cluster import IN_FLIGHT
from extract.job import Job, Utterance
from extract.prefetch import DEFAULT_DECODERS
from manifests.printing import get_logger

log = get_logger(__name__)

TRIES = 3
"""Times that an utterance alone may kill its worker before it is marked as failed."""

LOST_IN_A_ROW = 12 * IN_FLIGHT
"""Blocks lost in a row with their workers: more than a single bad utterance can explain."""

IDLE_DEATHS = 4
"""Workers killed for their memory without a block: the encoder alone does not fit."""

POLL_S = 0.5

NO_WORKER_WARN_S = 60.0
NO_WORKER = (
    "No workers connected yet; waiting. For SLURM, see `squeue` and the job logs; for a scheduler, "
    "`dask worker ADDRESS` starts one"
)
"""Logged every ``NO_WORKER_WARN_S`` seconds without a worker."""

LOCAL_WORKER_S = 300.0
"""Seconds without a worker after which a run on this machine ends."""

REMEDY = " (use fewer --workers or a larger --memory-limit)"


@dataclass(frozen=True)
class _BlockRun:
    block: Sequence[Utterance]
    deaths: int = 0  # workers killed while it ran alone
    ended_before: int = 0  # workers killed for their memory before that


def run_blocks(
    client: Client,
    job: Job,
    blocks: Sequence[Sequence[Utterance]],
    write_failed: Callable[..., Record],
    on_stage: Callable[[str, list[str]], None],
) -> Generator[list[Record]]:
    """Extract blocks and yield each one's records, in the order in which blocks finish.

    An empty list is yielded about twice a second, so that the caller can update its display.

    Args:
        client: connected to the workers.
        job: the settings shared by all blocks.
        blocks: the blocks to extract.
        write_failed: ``(utterance, reason) -> Record`` writes a failed row for an utterance that
            repeatedly killed its worker.
        on_stage: called from the client's thread with ``"decoded"`` or ``"encoded"`` and ids.

    Raises:
        ValueError: all workers die, or those of this machine cannot be started, a worker's machine
            is faulty or has another encoder, or a feature does not fit the stored type.
    """
    waiting = deque(_BlockRun(block) for block in blocks)
    suspects: deque[_BlockRun] = deque()
    running: dict[Future, _BlockRun] = {}
    lost = in_a_row = 0
    no_worker_since: float | None = None
    client.subscribe_topic(_topic(job), lambda event: on_stage(*event[1]))
    try:
        while waiting or suspects or running:
            # Submit no more than the workers process: a dying worker loses only these blocks.
            at_once = sum(min(IN_FLIGHT, count) for count in client.nthreads().values())
            free = max(1, at_once) - len(running)
            for _ in range(min(free, len(waiting))):
                attempt = waiting.popleft()
                running[_submit(client, job, attempt)] = attempt
            if not running:  # one suspect at a time: no other block can be the cause
                attempt = replace(suspects.popleft(), ended_before=_ended_by_memory(client))
                running[_submit(client, job, attempt)] = attempt
            finished = _first_done(list(running))
            # A block is lost with a worker, so a finished one shows that workers start.
            no_worker_since = None if finished else _check_workers(client, no_worker_since)
            if _ended_by_memory(client) > lost + IDLE_DEATHS:
                raise ValueError(f"workers die before they can work: {_why(client)}")
            if not finished:
                yield []
            for future in finished:
                attempt = running.pop(future)
                try:
                    records = future.result()
                except KilledWorker:
                    lost, in_a_row = lost + 1, in_a_row + 1
                    if in_a_row >= LOST_IN_A_ROW:
                        raise ValueError(
                            f"{in_a_row} blocks in a row were lost with their workers: "
                            f"{_why(client)}; finished blocks are kept, run the command again"
                        ) from None
                    log.info("a worker died while extracting %s", [u.id for u in attempt.block])
                    if len(attempt.block) > 1:
                        half = len(attempt.block) // 2
                        waiting.extend(
                            _BlockRun(part) for part in (attempt.block[:half], attempt.block[half:])
                        )
                    elif attempt.deaths + 1 < TRIES:
                        suspects.append(_BlockRun(attempt.block, attempt.deaths + 1))
                    else:
                        why = _why(client, attempt.ended_before)
                        reason = f"ended its worker {TRIES} times: {why}"
                        yield [write_failed(attempt.block[0], reason)]
                else:
                    if isinstance(records, str):
                        raise ValueError(records)
                    in_a_row = 0
                    yield records
                future.release()
    finally:
        client.unsubscribe_topic(_topic(job))
        client.cancel(list(running))


def _submit(client: Client, job: Job, attempt: _BlockRun) -> Future:
    return client.submit(_extract_on_worker, job, attempt.block, pure=False)


def _topic(job: Job) -> str:
    """Dask topic of the workers' progress events; a scheduler may serve several runs."""
    return f"extract {job.place}"


def _extract_on_worker(job: Job, block: Sequence[Utterance]) -> list[Record] | str:
    worker = get_worker()
    if job.encoder.device == "cpu":
        # Workers share the cores: more threads would only wait. PyTorch's setting is per thread.
        torch.set_num_threads(1)

    def on_stage(stage: str, ids: list[str]) -> None:
        worker.log_event(_topic(job), (stage, ids))

    return attempt_block(job, block, max(DEFAULT_DECODERS, worker.state.nthreads), on_stage)


def attempt_block(
    job: Job,
    block: Sequence[Utterance],
    decoders: int,
    on_stage: Callable[[str, list[str]], None],
) -> list[Record] | str:
    """Extract a block; return its records, or the error message.

    A message rather than an exception: a client that cannot unpickle an exception waits forever.
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
    """The finished futures, after waiting for at most ``POLL_S`` seconds."""
    try:
        return list(wait(futures, timeout=POLL_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []


def _check_workers(client: Client, since: float | None) -> float | None:
    """Wait for workers of other machines; raise a ValueError if this machine's cannot be started.

    Args:
        client: connected to the workers.
        since: when the last worker was lost, or the wait was last logged; None with workers.

    Returns:
        ``since`` for the next call.
    """
    now = time.monotonic()
    if client.nthreads():
        return None
    if since is None:
        return now
    if isinstance(client.cluster, LocalCluster):
        if now - since > LOCAL_WORKER_S:
            raise ValueError(
                f"no worker could be started for {now - since:.0f} s: their processes end before "
                f"they connect{REMEDY}; finished blocks are kept, run the command again"
            )
    elif now - since > NO_WORKER_WARN_S:
        log.warning(NO_WORKER)
        return now
    return since


def _ended_by_memory(client: Client) -> int:
    """Number of workers terminated so far because they exceeded their memory limit."""
    return len(client.get_events("worker-restart-memory"))


def _why(client: Client, ended_before: int = 0) -> str:
    if _ended_by_memory(client) > ended_before:
        return f"out of memory{REMEDY}"
    return f"it was killed, by the system perhaps for want of memory{REMEDY}"
