"""Measure time and memory of each command on a store of many utterances, and how they grow.

A generated store is published (its parts in the order of the ids, and shuffled), opened, selected
from, verified, grown by a hundredth, pushed to a folder and pulled back: at N/4 and at N
utterances, each step in a fresh process. Features are narrow, so the table shows what an utterance
costs, not what its values cost. One of many small stores in one folder is found as well.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks import isolated, report
from benchmarks.command_line import benchmark_parser
from cache import FeatureStore, Parts, Recipe, Record, find, publish
from cache.at_hand import find_at_hand
from cache.share.location import Location
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore
from cache.share.verify import verify
from cache.store.checksums import CHECKSUMS
from cache.store.chunks import row_numbers
from cache.store.publish import Finished
from cache.store.recipe import digest_of_segments, digest_of_sources
from cache.store.sources import Source
from cache.store.store_source import Wanted

SIZES = {"tiny": (200, 8), "small": (250_000, 500), "full": (1_000_000, 500)}
"""Utterances, and small stores in one folder."""
MODALITIES = ("audio", "vision")
BLOCK = 250  # utterances in a part: 1,000 parts of 250,000 utterances
NOISE = 8192  # rows of random values, which the utterances share
LONGEST = 1024
OPENS = 20
LIBRARIES = ("torch", "zarr", "cache.share.pull", "cache.share.push", "cache.share.verify")

console = Console(stderr=True)


@dataclass(frozen=True)
class Dataset:
    """A generated dataset, and the folder of its parts and stores.

    Attributes:
        root: folder of everything that is written.
        utterances: their number.
        stores: number of small stores in one folder.
        width: columns of audio and of vision.
        sources: digest of its sources.
    """

    root: Path
    utterances: int
    stores: int
    width: int
    sources: str = ""

    @property
    def recipe(self) -> Recipe:
        """The recipe of its features."""
        return _recipe("generated", self.sources)

    @property
    def ids(self) -> list[str]:
        """The ids, sorted."""
        return [f"{i:011d}$_${i % 97}" for i in range(self.utterances)]

    def records(self) -> list[Record]:
        """The records, in the order of the ids: four utterances are cut from each video.

        The frames are log-normal with median 9 and mean 15.
        """
        random = np.random.default_rng(0)
        frames = np.rint(9 * np.exp(random.standard_normal(self.utterances)))
        lengths = np.clip(frames, 1, LONGEST).astype(np.int64).tolist()
        return [
            Record(
                id=name,
                status="ok",
                duration=n / 2,
                audio_frames=n,
                vision_frames=n,
                source_sha256=hashlib.sha256(str(i // 4).encode()).hexdigest(),
                source_bytes=10_000_000 + i // 4,
                start=60.0 * (i % 4),
                end=60.0 * (i % 4) + n / 2,
            )
            for i, (name, n) in enumerate(zip(self.ids, lengths, strict=True))
        ]

    def store(self, folder: str) -> Path:
        """Path of the store in the folder of stores ``folder``."""
        return self.root / folder / self.recipe.dataset / self.recipe.store_name

    def write_parts(self, folder: str, order: np.ndarray) -> None:
        """Write the utterances with the numbers ``order`` to the parts of the store in ``folder``.

        The features depend on the utterance only.
        """
        parts, all_records = Parts(self.store(folder)), self.records()
        noise = np.random.default_rng(2).standard_normal((NOISE, self.width), np.float32)
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            records = [all_records[i] for i in block.tolist()]
            lengths = np.array([record.audio_frames for record in records])
            rows = noise[row_numbers(block * 7919 % (NOISE - LONGEST), lengths)]
            parts.write(records, dict.fromkeys(MODALITIES, rows), self.recipe.dtype)


def digest_of_records(dataset: Dataset) -> str:
    """Digest of the sources of a dataset."""
    rows = ((r.id, r.source_sha256, *r.cut) for r in dataset.records())
    return digest_of_sources(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    sizes = "tiny: a smoke test; small: 250,000 utterances, minutes; full: a million, 6 GB of disk"
    parser = benchmark_parser("scale", __doc__, SIZES, sizes, runs=1)
    parser.add_argument("--utterances", type=int, help="N, instead of that of --size")
    parser.add_argument("--width", type=int, default=32, help="columns (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder of temporary stores (default: /tmp)")
    options = parser.parse_args(arguments)
    isolated.prepare(LIBRARIES)
    utterances, stores = SIZES[options.size]
    utterances = options.utterances or utterances
    rows = []
    for part in (4, 1):
        with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=options.scratch) as scratch:
            counts = max(1, utterances // part), max(1, stores // part)
            dataset = Dataset(Path(scratch), *counts, options.width)
            sources, _ = isolated.run_isolated(digest_of_records, dataset)
            rows += _measure_all(replace(dataset, sources=sources), options)
    ratios = ratios_of(rows)
    text = f"{_table(rows)}\n\n{report.ratio_table(ratios)}\n"
    report.write(options.out, "scale", ratios, rows, 1, text)
    print(text)
    return 0


def _measure_all(dataset: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    steps = track(
        STEPS, f"{dataset.utterances:,}", console=console, disable=not console.is_terminal
    )
    for step in steps:
        runs = options.runs if step in REPEATED else 1
        costs = [isolated.run_isolated(step, dataset) for _ in range(runs)]
        row = {
            "step": step.__name__,
            "utterances": dataset.utterances,
            "seconds": float(np.median([cost["seconds"] for cost, _ in costs])),
            "cpu_seconds": float(np.median([cost["cpu_seconds"] for cost, _ in costs])),
            "memory": max(memory for _, memory in costs),
        }
        rows.append(row)
    return rows


# --- steps: each is called in its own process -----------------------------------------------------


def write_sorted_parts(dataset: Dataset) -> dict[str, float]:
    """Write parts whose utterances are in the order of the ids; generating them is included."""
    order = np.arange(dataset.utterances)
    return _timed(lambda: dataset.write_parts("sorted", order))


def publish_sorted(dataset: Dataset) -> dict[str, float]:
    """Publish these parts."""
    return _publish(dataset, "sorted")


def write_shuffled_parts(dataset: Dataset) -> dict[str, float]:
    """Write parts of random utterances."""
    order = np.random.default_rng(1).permutation(dataset.utterances)
    return _timed(lambda: dataset.write_parts("stores", order))


def publish_shuffled(dataset: Dataset) -> dict[str, float]:
    """Publish these parts: the store must be the same."""
    cost = _publish(dataset, "stores")
    first, second = (dataset.store(folder) / CHECKSUMS for folder in ("sorted", "stores"))
    if first.read_bytes() != second.read_bytes():
        raise ValueError("the store depends on the order of the utterances")
    shutil.rmtree(dataset.root / "sorted")
    return cost


def open_store(dataset: Dataset) -> dict[str, float]:
    """Open the store; the mean of several times."""
    store = dataset.store("stores")
    cost = _timed(lambda: [FeatureStore.open(store) for _ in range(OPENS)])
    return {key: value / OPENS for key, value in cost.items()}


def ids_and_status(dataset: Dataset) -> dict[str, float]:
    """Read the id and the status of every utterance."""
    store = FeatureStore.open(dataset.store("stores"))
    return _timed(lambda: (store.ids, store.status))


def select_resident(dataset: Dataset) -> dict[str, float]:
    """Load a random tenth of the utterances into memory."""
    return _select(dataset, resident=True)


def select_mapped(dataset: Dataset) -> dict[str, float]:
    """Map the store and find a random tenth of the utterances."""
    return _select(dataset, resident=False)


def verify_store(dataset: Dataset) -> dict[str, float]:
    """Verify every byte."""
    return _timed(lambda: verify(dataset.store("stores")))


def grow_by_a_hundredth(dataset: Dataset) -> dict[str, float]:
    """Publish a store with a hundredth more utterances; the others are carried over."""
    more = max(1, dataset.utterances // 100)
    grown = replace(dataset, utterances=dataset.utterances + more)
    grown = replace(grown, sources=digest_of_records(grown))
    records = grown.records()
    grown.write_parts("stores", np.arange(dataset.utterances, grown.utterances))
    store, widths = grown.store("stores"), dict.fromkeys(MODALITIES, dataset.width)
    sources = {r.id: r.source_sha256 for r in records}
    wanted = [Wanted(r.id, r.cut, Source(r.source_bytes, r.source_sha256)) for r in records]
    stores, ids = dataset.root / "stores", grown.ids

    def grow() -> None:
        hand = find_at_hand(grown.recipe, wanted, stores, (), dataset.root / "borrowed")
        if len(hand.rows) != dataset.utterances:
            raise ValueError(f"{len(hand.rows)} utterances are at hand")
        finished = Finished(Parts(store), hand.rows, sources)
        publish(store, grown.recipe, widths, {"licence": "none"}, ids, finished=finished)

    cost = _timed(grow)
    shutil.rmtree(store)
    return cost


def push_store(dataset: Dataset) -> dict[str, float]:
    """Push the store to a share in a folder."""
    return _timed(lambda: push(dataset.store("stores"), str(dataset.root / "share")))


def pull_store(dataset: Dataset) -> dict[str, float]:
    """Pull it back from there into another folder of stores."""
    share = Location.parse(str(dataset.root / "share"))
    source = RemoteStore(share, dataset.recipe.dataset, dataset.recipe.store_name)
    return _timed(lambda: pull(source, dataset.root / "pulled"))


def publish_small_stores(dataset: Dataset) -> dict[str, float]:
    """Publish many stores of one utterance in one folder."""

    def publish_all() -> None:
        for n in range(dataset.stores):
            recipe = _recipe("small", str(n))
            store = dataset.root / "many" / "small" / recipe.store_name
            rows = np.zeros((2, 4), np.float32)
            Parts(store).write(
                [Record("a", "ok", "", 1.0, 2, 2)], dict.fromkeys(MODALITIES, rows), recipe.dtype
            )
            about = {"segments": digest_of_segments(_cuts(n))}
            publish(store, recipe, dict.fromkeys(MODALITIES, 4), about, ["a"])

    return _timed(publish_all)


def find_among_small_stores(dataset: Dataset) -> dict[str, float]:
    """Find the store of a manifest among them."""
    return _timed(lambda: find("small", dataset.root / "many", cuts=_cuts(0)))


STEPS: tuple[Callable[[Dataset], dict[str, float]], ...] = (
    write_sorted_parts,
    publish_sorted,
    write_shuffled_parts,
    publish_shuffled,
    open_store,
    ids_and_status,
    select_resident,
    select_mapped,
    verify_store,
    grow_by_a_hundredth,
    push_store,
    pull_store,
    publish_small_stores,
    find_among_small_stores,
)
REPEATED = (
    *(open_store, ids_and_status, select_resident, select_mapped, verify_store),
    find_among_small_stores,
)


def _cuts(n: int) -> list[tuple[str, str, float | None, float | None, None]]:
    """The segments of the manifest of a small store."""
    return [("a", f"{n}.mp4", None, None, None)]


def _recipe(dataset: str, utterances: str) -> Recipe:
    sampling = {"fps": 2.0}
    return Recipe.with_one_encoder(dataset, "random", "none", {}, sampling, 1, utterances)


def _publish(dataset: Dataset, folder: str) -> dict[str, float]:
    store, widths = dataset.store(folder), dict.fromkeys(MODALITIES, dataset.width)
    ids = dataset.ids
    return _timed(lambda: publish(store, dataset.recipe, widths, {"licence": "none"}, ids))


def _select(dataset: Dataset, resident: bool) -> dict[str, float]:
    store, ids = FeatureStore.open(dataset.store("stores")), dataset.ids
    some = np.random.default_rng(3).permutation(dataset.utterances)[: dataset.utterances // 10]
    wanted = [ids[i] for i in some.tolist()]
    return _timed(lambda: store.select(wanted, resident))


def _timed(work: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds, and the CPU seconds of all threads, that ``work`` takes."""
    start, cpu = perf_counter(), process_time()
    work()
    return {"seconds": perf_counter() - start, "cpu_seconds": process_time() - cpu}


# --- results --------------------------------------------------------------------------------------


def ratios_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return shuffled over sorted publishing, and the growth of each step from N/4 to N."""
    few, many = _by_size(rows)
    ratios = {
        f"shuffled_vs_sorted_{what}": many["publish_shuffled"][what] / many["publish_sorted"][what]
        for what in ("seconds", "cpu_seconds", "memory")
    }
    for what in ("cpu_seconds", "memory"):
        ratios |= {
            f"{step}_{what}_growth": many[step][what] / few[step][what]
            for step in many
            if few[step][what]
        }
    return ratios


def _by_size(rows: list[dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """The rows of each number of utterances, by step; the smaller number first."""
    counts = sorted({row["utterances"] for row in rows})
    return [{row["step"]: row for row in rows if row["utterances"] == n} for n in counts]


def _table(rows: list[dict[str, Any]]) -> str:
    few, many = _by_size(rows)
    counts = [f"{next(iter(size.values()))['utterances']:,}" for size in (few, many)]
    headings = ["step"]
    for what in ("s", "CPU s", "MB"):
        headings += [f"{what}, {counts[0]}", counts[1], "ratio"]
    cells = []
    for step in many:
        line = [step.replace("_", " ")]
        for what, unit in (("seconds", 1), ("cpu_seconds", 1), ("memory", 1e6)):
            one, other = few[step][what] / unit, many[step][what] / unit
            line += [*map(report.number, (one, other, other / one if one else None))]
        cells.append(line)
    return report.markdown(headings, cells)


if __name__ == "__main__":
    sys.exit(main())
