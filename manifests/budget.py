"""Budget: the memory that the content of an untrusted file may take, charged before it is taken.

A file of a few bytes may claim terabytes: in a header, by compression, by holes, or by objects that
refer to the same content again and again. So whoever reads a file from elsewhere works out what
each step takes, and charges it to the file's budget first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

ALWAYS = 128 << 20
"""Bytes that the content of any file may take."""
EXPANSION = 100
"""How many times its own size the content of a larger file may take, if it may be compressed."""
_MOST_HOLES = 10_000

# The files of a control group, version 2 and version 1: limit, usage, and the key in memory.stat of
# cached file pages, which count as usage but are evicted when memory runs short.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class OverBudgetError(ValueError):
    """The content of a file takes more memory than it may."""


class Budget:
    """The memory that the content of one file may take.

    That is the free memory; but at most ``expansion`` times the bytes that the file has on the
    disk, where `ALWAYS` is the least. Compressed or sparse files that exceed this are more likely
    made to fill the memory than to hold data.

    Attributes:
        most: bytes that the content of a file of this size may take.
        left: bytes that can still be charged.
    """

    def __init__(self, size: int | None = None, expansion: int = EXPANSION) -> None:
        """Make a budget.

        Args:
            size: of the file in bytes, see :meth:`of`; None: the content is our own, and only the
                free memory limits it.
            expansion: how many times its size the content of such a file may take.
        """
        self._free = free_memory()
        self.most = self._free if size is None else max(ALWAYS, expansion * size)
        self.left = min(self._free, self.most)

    @classmethod
    def of(cls, path: Path | int, expansion: int = EXPANSION) -> Budget:
        """Make the budget of a file, by its path or descriptor; holes do not count as its size.

        Raises:
            OSError: there is no such file.
        """
        if isinstance(path, int):
            return cls(_data_bytes(path), expansion)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return cls(_data_bytes(descriptor), expansion)
        finally:
            os.close(descriptor)

    def take(self, what: str, needed: float, remedy: str = "") -> None:
        """Charge memory before it is allocated.

        Args:
            what: what needs the memory: the beginning of the message.
            needed: bytes.
            remedy: the end of the message.

        Raises:
            OverBudgetError: less is left.
        """
        if needed <= self.left:
            self.left -= int(needed)
            return
        used = min(self._free, self.most) - self.left
        rest = f", of which {used / 1e9:.1f} GB are used" if used else ""
        if needed > self._free - used:
            raise OverBudgetError(
                f"{what} needs {needed / 1e9:.1f} GB of memory, {self._free / 1e9:.1f} GB are "
                f"free{rest}{remedy}"
            )
        raise OverBudgetError(
            f"{what} needs {needed / 1e9:.2f} GB of memory, but the content of a file of this size "
            f"may take {self.most / 1e9:.2f} GB{rest}; if the data are good, save them without "
            f"compression or holes{remedy}"
        )


def check_fits(what: str, needed: float, remedy: str = "") -> None:
    """Raise an OverBudgetError unless the free memory suffices; arguments as for `Budget.take`."""
    Budget().take(what, needed, remedy)


def read_file(path: Path, budget: Budget, copies: float = 1) -> bytes:
    """Read a whole regular file, for which ``copies`` times its size is charged.

    Raises:
        OverBudgetError: the budget is smaller.
        OSError: it cannot be read, or is a device or a pipe, which may have no end.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        budget.take(str(path), copies * status.st_size)
        return file.read(status.st_size)


def _data_bytes(descriptor: int) -> int:
    """Bytes of a file that are not in holes; its size where the system does not tell."""
    status = os.fstat(descriptor)
    if not hasattr(os, "SEEK_DATA") or not stat.S_ISREG(status.st_mode):
        return status.st_size
    place, end, found = os.lseek(descriptor, 0, os.SEEK_CUR), 0, 0
    with suppress(OSError):  # no data behind this place
        for _ in range(_MOST_HOLES):
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            found += end - start
    os.lseek(descriptor, place, os.SEEK_SET)
    return found


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping, within the limits of the control groups.

    Args:
        system: where ``proc`` and ``sys`` are mounted.
    """
    free = [psutil.virtual_memory().available, *_free_address_space()]
    return max(0, min([*free, *(free for group in _groups(system) for free in _free_in(group))]))


def _free_address_space() -> Iterator[int]:
    """Yield what is left of the process's own limit (``ulimit -v``), if it has one."""
    if resource is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield limit - psutil.Process().memory_info().vms


def _groups(system: Path) -> Iterator[Path]:
    """Yield the process's control groups and their parents, whose limits hold for it too."""
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or no /proc
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = system / "sys/fs/cgroup" / controllers
            own = top / path.lstrip("/")  # in a container only `top` may exist
            yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _free_in(group: Path) -> Iterator[int]:
    for limit, usage, reclaimable in _FILES:
        try:
            maximum = (group / limit).read_text(encoding="utf-8").strip()
            used = int((group / usage).read_text(encoding="utf-8"))
            statistics = (group / "memory.stat").read_text(encoding="utf-8")
        except OSError:
            continue
        if maximum != "max":
            stat = dict(line.split() for line in statistics.splitlines())
            yield int(maximum) - used + int(stat.get(reclaimable, 0))
