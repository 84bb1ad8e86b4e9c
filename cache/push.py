"""A published store goes to a share.

Its ``checksums.json`` goes up last: before that the share does not hold the store. Every file is
compared with it before it is sent. An interrupted push goes on where it stopped.
"""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path

from cache import catalog
from cache.assemble import CHECKSUMS
from cache.checksums import Checksums
from cache.location import Location, ShareError
from cache.reader import FeatureCache
from cache.share import WORKERS, Progress, Shared, in_threads


def push(
    store: Path,
    location: str,
    *,
    take_over: bool = False,
    workers: int = WORKERS,
    on_bytes: Progress | None = None,
) -> tuple[Shared, int]:
    """Copy a published store to a share and enter it into the share's catalogue.

    Args:
        store: the published store.
        location: the share, a folder or URL.
        take_over: drop what another, unfinished push of the same recipe left there.
        workers: files in flight at once.
        on_bytes: told of the progress.

    Returns:
        Where it is now, and how many files were copied: 0 if it was there already.

    Raises:
        ValueError: the share has this recipe with other content, or the store is damaged.
        ShareError: the share is out of reach, or not ours to write.
    """
    cache, checksums = FeatureCache.open(store), Checksums.of(store)
    target = Shared(Location.parse(location), cache.dataset, store.resolve().name)
    if not target.share.writable:
        raise ValueError(f"{target.share}: a web server is only read; push to what lies behind it")
    entry = catalog.Entry.of(target.name, cache.attributes, checksums)
    copied = 0
    if target.share.folder is not None:
        target.share.folder.mkdir(parents=True, exist_ok=True)
    if not _already_there(target, checksums):
        resumed = _claim(target, checksums, take_over)
        try:
            copied = _send(store, target, checksums, resumed, workers, on_bytes)
            if _claims(target) != {_ours(checksums)}:
                raise ShareError(f"{target}: another push took over; push again")
            target.share.write(f"{target.path}/{CHECKSUMS}", checksums.raw, _waiting(target))
        except ShareError:
            if not _already_there(target, checksums):  # somebody else was faster
                raise
    target.share.remove(_waiting(target))
    catalog.add(target.share, entry)
    return target, copied


def _already_there(target: Shared, checksums: Checksums) -> bool:
    there = target.checksums()
    if there is not None and there.raw != checksums.raw:
        raise ValueError(
            f"{target} holds the same recipe with other content; a published store is never "
            "overwritten. Pull that one, or compare: python -m cache diff"
        )
    return there is not None


def _waiting(target: Shared) -> str:
    """Beside the store on its way: who sends it, and files that are not whole yet."""
    return f"{target.path}.pushing"


def _ours(checksums: Checksums) -> str:
    return f"{checksums.content}.claim"


def _claims(target: Shared) -> set[str]:
    return {name for name in target.share.sizes(_waiting(target)) if name.endswith(".claim")}


def _claim(target: Shared, checksums: Checksums, take_over: bool) -> bool:
    """Say that we send this content; True if that was begun before and can go on.

    Two stores of one recipe may differ in their last bits but have files of equal sizes, so an
    unfinished push of one must not be completed with the other. Each writes its claim and then
    looks for others: of two at once at least one sees the other. Who finishes first takes the claim
    away after publishing, so whoever saw none looks for a published store again.
    """
    ours = _ours(checksums)
    resumed = _claims(target) == {ours} and not take_over
    if take_over:
        target.share.remove(_waiting(target))
    by = {"who": getpass.getuser(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
    target.share.write(f"{_waiting(target)}/{ours}", json.dumps(by).encode(), _waiting(target))
    try:
        for other in _claims(target) - {ours}:
            whose = target.share.read(f"{_waiting(target)}/{other}").decode(errors="replace")
            raise ValueError(
                f"{target}: somebody is pushing the same recipe with other content ({whose}); wait "
                "for that push, or drop what it left with --take-over"
            )
        _already_there(target, checksums)
    except ValueError:
        if not resumed:
            target.share.remove(f"{_waiting(target)}/{ours}")
        raise
    return resumed


def _send(
    store: Path,
    target: Shared,
    checksums: Checksums,
    resumed: bool,
    workers: int,
    on_bytes: Progress | None,
) -> int:
    """Send what the share does not have; returns the number of files."""
    there = target.share.sizes(target.path) if resumed else {}

    def missing(name: str) -> bool:
        if target.where.folder is not None and resumed:  # near enough to be read again
            return bool(checksums.problem(target.where.folder, name))
        return there.get(name) != checksums.files[name].size

    needed = [name for name in sorted(checksums.files) if missing(name)]

    def send(name: str) -> int:
        data = (store / name).read_bytes() if (store / name).is_file() else b""
        if not checksums.files[name].matches(data):
            raise ValueError(f"{store}: {name} is damaged; run: python -m cache verify {store}")
        target.share.write(f"{target.path}/{name}", data, _waiting(target))
        return len(data)

    in_all = sum(checksums.files[name].size for name in needed)
    in_threads(send, needed, workers, in_all, on_bytes)
    arrived = target.share.sizes(target.path)
    wrong = [n for n, entry in checksums.files.items() if arrived.get(n) != entry.size]
    if wrong:
        raise ShareError(f"{target}: {wrong[0]} did not arrive whole; push again")
    for extra in arrived.keys() - checksums.files.keys() - {CHECKSUMS}:
        target.share.remove(f"{target.path}/{extra}")
    return len(needed)
