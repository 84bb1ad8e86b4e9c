"""Free memory of this process: the machine's, or less in a container or a cluster job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

# The files of a control group, version 2 and version 1: limit, usage, and the key in memory.stat of
# cached file pages, which count as usage but are evicted when memory runs short.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(system: Path = Path("/")) -> int:
    """Bytes that can be allocated without swapping, within the limits of the control groups.

    Args:
        system: where ``proc`` and ``sys`` are mounted.
    """
    free = psutil.virtual_memory().available
    return max(0, min([free, *(free for group in _groups(system) for free in _free_in(group))]))


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
