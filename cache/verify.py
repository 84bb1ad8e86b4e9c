"""Whether every byte of a store is what was published."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.disk import sha256_of
from cache.reader import FeatureCache
from cache.recipe import MODALITIES
from cache.store import CHECKSUMS


@dataclass(frozen=True)
class Fault:
    """A file that is not what was published.

    Attributes:
        file: path inside the store.
        problem: ``missing``, ``extra``, ``wrong size`` or ``changed``.
        utterances: ids with rows in that file; empty where it concerns them all.
    """

    file: str
    problem: str
    utterances: tuple[str, ...] = ()


def verify(store: str | Path, on_file: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Check every file of ``store`` against its checksums; no faults, an empty list.

    Raises:
        ValueError: the store has no readable checksums.
    """
    store = Path(store)
    try:
        expected = json.loads((store / CHECKSUMS).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{store / CHECKSUMS} cannot be read: {error}") from error
    present = {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}
    problems = dict.fromkeys(present - expected.keys() - {CHECKSUMS}, "extra")
    for done, (name, entry) in enumerate(sorted(expected.items()), 1):
        path = store / name
        if name not in present:
            problems[name] = "missing"
        elif path.stat().st_size != entry["bytes"]:
            problems[name] = "wrong size"
        elif sha256_of(path) != entry["sha256"]:
            problems[name] = "changed"
        if on_file is not None:
            on_file(done, len(expected))
    return [Fault(f, problem, _concerned(store, f)) for f, problem in sorted(problems.items())]


def _concerned(store: Path, file: str) -> tuple[str, ...]:
    """The utterances with rows in a chunk file; none if the file concerns all of them."""
    parts = file.split("/")
    if len(parts) != 5 or parts[0] not in MODALITIES or parts[1:3] != ["values", "c"]:
        return ()
    try:
        meta = json.loads((store / parts[0] / "values" / "zarr.json").read_text(encoding="utf-8"))
        rows = meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        cache = FeatureCache.open(store)
        offsets, ids = cache.offsets(parts[0]), cache.ids
        first = int(parts[3]) * rows
    except (OSError, ValueError, KeyError, IndexError):  # the index itself is damaged
        return ()
    return tuple(
        i
        for i, start, stop in zip(ids, offsets[:-1], offsets[1:], strict=True)
        if start < first + rows and stop > first and stop > start
    )
