"""Run ffmpeg: several output streams from one process, bounded in memory and in time."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import IO, TypeVar

import imageio_ffmpeg
import psutil

MAX_IN_MEMORY = 64 << 20
"""Bytes of a stream kept in memory; a longer stream is moved to a temporary file."""

VARIABLE = "SEMANTICMAC_FFMPEG"
"""Environment variable with the path of an ffmpeg to use instead of the bundled one."""
MIN_FFMPEG_VERSION = (5, 1)
"""The first release with all the options used here (``-fps_mode``, ``out_chlayout``)."""

FFMPEG_NICE = 10
"""Added to the nice value of ffmpeg processes.

With too few cores the encoder takes precedence over decoding frames that are not needed yet.
"""

_MAX_LOG_BYTES = 64 << 10
_READ_BYTES = 1 << 20

StreamName = TypeVar("StreamName")


class HangingError(Exception):
    """The process gave no result within its timeout and was killed."""


@functools.cache
def ffmpeg_exe() -> str:
    """The path of the ffmpeg in ``$SEMANTICMAC_FFMPEG``, else of the one bundled by imageio-ffmpeg.

    ``PATH`` is not searched: its ffmpeg differs between machines and may be too old.

    Raises:
        ValueError: it cannot be run, or is older than ``MIN_FFMPEG_VERSION``.
    """
    try:
        path = os.environ.get(VARIABLE) or str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise ValueError(
            f"imageio-ffmpeg has no ffmpeg for this system: set ${VARIABLE} to the path of one"
        ) from None
    version = _version(path)
    # builds between releases are named by date or commit; they are assumed to be new enough
    found = re.match(r"n?(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < MIN_FFMPEG_VERSION:
        oldest = ".".join(map(str, MIN_FFMPEG_VERSION))
        raise ValueError(
            f"{path} is ffmpeg {version}, but {oldest} or later is required: set ${VARIABLE} to "
            "the path of one, or unset it to use the one bundled by imageio-ffmpeg"
        )
    return path


def ffmpeg_version() -> str:
    """The version printed by ``ffmpeg -version``; ValueError as :func:`ffmpeg_exe`."""
    return _version(ffmpeg_exe())


@functools.cache
def _version(path: str) -> str:
    try:
        shown = subprocess.run([path, "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"{path} cannot be run: {error}; set ${VARIABLE} to the path of an ffmpeg"
        ) from error
    found = re.match(r"ffmpeg version (\S+)", shown.stdout)
    if not found:
        raise ValueError(f"{path} is not ffmpeg: set ${VARIABLE} to the path of one")
    return found[1]


def run_process(
    names: Iterable[StreamName],
    command: Callable[[Mapping[StreamName, int]], list[str]],
    timeout: float,
) -> tuple[int, str, dict[StreamName, IO[bytes]]]:
    """Run a process that writes several streams at once.

    All pipes and the log are read as they fill: read one after another, they would deadlock.

    Args:
        names: names of the streams.
        command: returns the command line, given the file descriptor of each stream.
        timeout: seconds after which the process is killed. One that still works, but got too
            little of a core, may continue until it has used as many seconds of processor time.

    Returns:
        The exit status, the end of the log, and each stream as a file.

    Raises:
        HangingError: the timeout is over; the process is killed and every pipe closed.
    """
    pipes: dict[StreamName, tuple[int, int]] = {}
    try:
        for name in names:
            pipes[name] = os.pipe()
        process = subprocess.Popen(
            command({name: sink for name, (_, sink) in pipes.items()}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[sink for _, sink in pipes.values()],
        )
    except BaseException:
        for source, _ in pipes.values():
            os.close(source)
        raise
    finally:
        for _, sink in pipes.values():
            os.close(sink)  # only the process may hold the write end, or reading never ends
    streams: dict[StreamName, IO[bytes]] = {
        name: tempfile.SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115  (kept as long as the rows in it)
        for name in pipes
    }
    try:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, process.pid, own + FFMPEG_NICE)
        assert process.stderr is not None
        sources = {source: streams[name].write for name, (source, _) in pipes.items()}
        log = _drain(sources, process.stderr.fileno(), timeout, _cpu_shortage_check(process.pid))
        status = process.wait(timeout)
    except (subprocess.TimeoutExpired, HangingError):
        raise HangingError(f"ffmpeg gave no result within {timeout:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
        for source, _ in pipes.values():
            os.close(source)
    return status, log.decode("utf-8", "replace"), streams


def _cpu_shortage_check(pid: int) -> Callable[[float], bool]:
    """Return a function that tells whether a process works but is short of processor time.

    It takes the seconds allowed and is true while the process has used fewer in total, but more
    than at the last call.
    """
    watched, used = psutil.Process(pid), 0.0

    def is_short(seconds: float) -> bool:
        nonlocal used
        times = watched.cpu_times()
        before, used = used, times.user + times.system
        return before < used < seconds

    return is_short


def _drain(
    sources: Mapping[int, Callable[[bytes], int]],
    log: int,
    timeout: float,
    may_continue: Callable[[float], bool],
) -> bytes:
    """Copy every stream until all pipes are closed; return the end of the log."""
    log_end, deadline = b"", time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for source in (*sources, log):
            selector.register(source, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                if not may_continue(timeout):
                    raise HangingError
                deadline += timeout / 2
            for key, _ in ready:
                piece = os.read(key.fd, _READ_BYTES)
                if not piece:
                    selector.unregister(key.fd)
                elif key.fd == log:
                    log_end = (log_end + piece)[-_MAX_LOG_BYTES:]
                else:
                    sources[key.fd](piece)
    return log_end
