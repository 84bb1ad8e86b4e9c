"""How much memory this process may still take: the machine's, or less in a container or a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# The files of a control group, version 2 and version 1: limit, use, and in memory.stat what of the
# use are pages of files, which the kernel gives back when memory runs short.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that can be taken without swapping, within the limits of the process's groups.

    Args:
        system: where ``proc`` and ``sys`` are mounted.
    """
    free = psutil.virtual_memory().available
    return max(0, min([free, *(room for group in _groups(system) for room in _room(group))]))


def _groups(system: Path) -> Iterator[Path]:
    """The process's control groups and those around them; a limit holds for all below it."""
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux, or none told
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = system / "sys/fs/cgroup" / controllers
            own = top / path.lstrip("/")  # in a container not below `top`: only `top` is there
            yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _room(group: Path) -> Iterator[int]:
    for limit, use, reclaimable in _FILES:
        try:
            bound = (group / limit).read_text(encoding="utf-8").strip()
            taken = int((group / use).read_text(encoding="utf-8"))
            told = (group / "memory.stat").read_text(encoding="utf-8")
        except OSError:
            continue
        if bound != "max":
            stat = dict(line.split() for line in told.splitlines())
            yield int(bound) - taken + int(stat.get(reclaimable, 0))
