"""Run a function in its own process, so that its memory and caches do not affect the next one.

The processes are forked from a server that has imported the libraries: Python's imports are not
timed.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil

_POLL_S = 0.005


def prepare(modules: Sequence[str]) -> None:
    """Import ``modules`` once, before all further processes are forked."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))


def run_isolated(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Call an importable function in a fresh process.

    Returns:
        Its result, and the peak of its private memory (bytes) minus that at the start. Pages of
        mapped files are not private: the system can reclaim them.

    Raises:
        RuntimeError: the function failed, or its process died.
    """
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, function, arguments))
    process.start()
    there.close()
    try:
        peak = at_start = here.recv()
        with suppress(psutil.NoSuchProcess):  # it may end right after it has sent its result
            watched = psutil.Process(process.pid)
            while not here.poll(_POLL_S):
                peak = max(peak, private_bytes(watched))
        result, at_end, error = here.recv()
    except EOFError:
        raise RuntimeError(f"the process of {function.__name__} died") from None
    finally:
        here.close()
        process.join()
    if error is not None:
        raise RuntimeError(f"{function.__name__} failed: {error}")
    return result, max(peak, at_end) - at_start


def private_bytes(process: psutil.Process) -> int:
    """Return the resident memory not backed by a file (``RssAnon`` on Linux), in bytes."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _child(there: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    this = psutil.Process()
    there.send(private_bytes(this))
    try:
        result, error = function(*arguments), None
    except Exception:
        result, error = None, traceback.format_exc()
    there.send((result, private_bytes(this), error))
