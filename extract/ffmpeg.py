"""Running ffmpeg: many streams out of one process, in bounded memory, never for ever."""

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
"""Bytes of a stream kept in memory; what goes beyond lies in a temporary file."""

FFMPEG = "SEMANTICMAC_FFMPEG"
"""Names another ffmpeg than the bundled one."""
MIN_FFMPEG_VERSION = (5, 1)
"""The first ffmpeg that knows all our options (``-fps_mode``, ``out_chlayout``)."""

FFMPEG_NICE = 10
"""How much nicer ffmpeg is than the process it works for: the encoder comes first where there is
not a core for each, or it would wait for frames that nobody needs yet."""

_LOG_LIMIT = 64 << 10
_PIECE = 1 << 20

StreamName = TypeVar("StreamName")


class HangingError(Exception):
    """The process gave no result in its time and was ended."""


@functools.cache
def ffmpeg_exe() -> str:
    """The ffmpeg that ``$SEMANTICMAC_FFMPEG`` names, else the one that imageio-ffmpeg carries.

    What lies on ``PATH`` is not asked: it differs from machine to machine, and may be too old.

    Raises:
        ValueError: it cannot be run, or is older than ``MIN_FFMPEG_VERSION``.
    """
    try:
        path = os.environ.get(FFMPEG) or str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise ValueError(f"no ffmpeg came with imageio-ffmpeg: name one in ${FFMPEG}") from None
    version = _version(path)
    # a build between two releases is named by a date or a commit, and taken for a new one
    found = re.match(r"n?(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < MIN_FFMPEG_VERSION:
        oldest = ".".join(map(str, MIN_FFMPEG_VERSION))
        raise ValueError(
            f"{path} is ffmpeg {version}; {oldest} or later is needed: name such a "
            f"one in ${FFMPEG}, or unset it for the one that imageio-ffmpeg carries"
        )
    return path


def ffmpeg_version() -> str:
    """The version that ``ffmpeg -version`` names; ValueError as :func:`ffmpeg_exe`."""
    return _version(ffmpeg_exe())


@functools.cache
def _version(path: str) -> str:
    try:
        said = subprocess.run([path, "-version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{path} cannot be run: {error}; name an ffmpeg in ${FFMPEG}") from error
    found = re.match(r"ffmpeg version (\S+)", said.stdout)
    if not found:
        raise ValueError(f"{path} is no ffmpeg: name one in ${FFMPEG}")
    return found[1]


def run_process(
    names: Iterable[StreamName],
    command: Callable[[Mapping[StreamName, int]], list[str]],
    timeout: float,
) -> tuple[int, str, dict[StreamName, IO[bytes]]]:
    """Run a process that writes several streams at once.

    All pipes and the log are drained as they fill: read one after the other they would hang.

    Args:
        names: of the streams.
        command: makes the command line, given the file descriptor to write each stream to.
        timeout: seconds after which the process is ended. One that still works, but was short of
            a core, may go on until it has used as many seconds of processor time.

    Returns:
        The exit status, the end of the log, and each stream as a file.

    Raises:
        HangingError: the time is over; the process is gone and everything closed.
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
            os.close(sink)  # only the process may hold the writing end, or reading never ends
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
    """Whether a process has worked since it was last asked, and not for so many seconds in all."""
    watched, worked = psutil.Process(pid), 0.0

    def ask(seconds: float) -> bool:
        nonlocal worked
        times = watched.cpu_times()
        before, worked = worked, times.user + times.system
        return before < worked < seconds

    return ask


def _drain(
    sources: Mapping[int, Callable[[bytes], int]],
    log: int,
    timeout: float,
    may_continue: Callable[[float], bool],
) -> bytes:
    """Pass everything on until all ends are closed; returns the last of the log."""
    said, deadline = b"", time.monotonic() + timeout
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
                piece = os.read(key.fd, _PIECE)
                if not piece:
                    selector.unregister(key.fd)
                elif key.fd == log:
                    said = (said + piece)[-_LOG_LIMIT:]
                else:
                    sources[key.fd](piece)
    return said
