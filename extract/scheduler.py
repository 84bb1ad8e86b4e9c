"""Blocks through Dask workers, whatever happens to the workers.

A block whose worker died is halved and runs again, down to the one utterance that kills workers:
that one fails with a reason, the others do not notice.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from dask.distributed import Client, Future, KilledWorker, get_worker, wait

from cache import Record
from extract.block import extract_block
from extract.cluster import IN_FLIGHT
from extract.job import Job, Utterance
from extract.prefetch import DEFAULT_DECODERS

log = logging.getLogger(__name__)

TRIES = 3
"""How often an utterance on its own may end its worker before it counts as the culprit."""

LOST_IN_A_ROW = 12 * IN_FLIGHT
"""Blocks lost with their workers and none finished between: more than one culprit can explain."""

IDLE_DEATHS = 4
"""Workers ended over their memory without a block: the encoder alone is too large for them."""

POLL_S = 0.5

NO_WORKER_WARN_S = 60.0
NO_WORKER = (
    "no worker is there, waiting for one: squeue and the jobs' logs tell of SLURM's, "
    "`dask worker ADDRESS` starts one for a scheduler"
)
"""Said whenever there was none for so long."""

REMEDY = " (use fewer --workers or a larger --memory-limit)"


@dataclass(frozen=True)
class _BlockRun:
    block: Sequence[Utterance]
    deaths: int = 0  # of workers, when it ran on its own
    ended_before: int = 0  # workers over their memory before it ran on its own


def run_blocks(
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
    waiting = deque(_BlockRun(block) for block in blocks)
    suspects: deque[_BlockRun] = deque()
    running: dict[Future, _BlockRun] = {}
    lost = in_a_row = 0
    alone_since: float | None = None
    client.subscribe_topic(_topic(job), lambda event: on_stage(*event[1]))
    try:
        while waiting or suspects or running:
            # No more than they work on: a worker that dies takes little else with it.
            at_once = sum(min(IN_FLIGHT, count) for count in client.nthreads().values())
            free = max(1, at_once) - len(running)
            for _ in range(min(free, len(waiting))):
                attempt = waiting.popleft()
                running[_submit(client, job, attempt)] = attempt
            if not running:  # one suspect at a time: nobody is blamed for a neighbour
                attempt = replace(suspects.popleft(), ended_before=_ended_by_memory(client))
                running[_submit(client, job, attempt)] = attempt
            finished = _first_done(list(running))
            alone_since = None if client.nthreads() else alone_since or time.monotonic()
            if alone_since and time.monotonic() - alone_since > NO_WORKER_WARN_S:
                log.warning(NO_WORKER)
                alone_since = time.monotonic()
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
                    log.info("a worker died over %s", [u.id for u in attempt.block])
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
                        yield [give_up(attempt.block[0], reason)]
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
    """Under which the workers tell how far they are; a scheduler may serve several runs."""
    return f"extract {job.store}"


def _extract_on_worker(job: Job, block: Sequence[Utterance]) -> list[Record] | str:
    worker = get_worker()
    if job.encoder.device == "cpu":
        # Workers share the cores: threads of each would wait for those of the others. PyTorch
        # counts them per calling thread.
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
