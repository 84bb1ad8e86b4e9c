"""Measure time and memory of our mapped reader as the store grows."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import psutil
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import report
from benchmarks.generate import generate
from benchmarks.isolated import private_bytes, run_isolated
from cache import FeatureStore

FACTORS = (1, 4, 16)
_BATCHES = 50

console = Console(stderr=True)


@dataclass(frozen=True)
class Needs:
    """Time and memory needed to open a store.

    Attributes:
        open_s: seconds to read the metadata.
        ids_s: seconds to read the ids.
        select_s: seconds to map the files and find all utterances.
        first_batch_s: seconds for the first packed batch after that.
        memory: bytes of private memory after `_BATCHES` batches.
    """

    open_s: float
    ids_s: float
    select_s: float
    first_batch_s: float
    memory: int


def run(scratch: Path, unit: int, runs: int, threads: int, out: Path) -> None:
    """Measure stores of ``unit`` utterances times 1, 4 and 16; write and print the table."""
    rows = []
    for factor in track(FACTORS, console=console, disable=not console.is_terminal):
        store = generate(scratch, unit * factor)
        needs = [run_isolated(measure, store, threads)[0] for _ in range(runs)]
        medians = {
            key: statistics.median(asdict(need)[key] for need in needs) for key in asdict(needs[0])
        }
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        rows.append({"utterances": unit * factor, "bytes": size, **medians})
        shutil.rmtree(store)
    first, last = rows[0], rows[-1]
    ratios = {f"{key}_growth": last[key] / first[key] for key in medians}
    headings = ["utterances", "GB", "open ms", "ids ms", "select ms", "first batch ms", "memory MB"]
    cells = [
        [
            f"{row['utterances']:,}",
            f"{row['bytes'] / 1e9:.2f}",
            *(report.number(row[key] * 1e3) for key in medians if key.endswith("_s")),
            report.number(row["memory"] / 1e6),
        ]
        for row in rows
    ]
    text = report.markdown(headings, cells)
    report.write(out, "read-growth", ratios, rows, threads, text + "\n")
    print(text)


def measure(store: Path, threads: int) -> Needs:
    """Open a store, map all of it and read random batches, in this process."""
    torch.set_num_threads(threads)
    this = psutil.Process()
    before = private_bytes(this)
    start = perf_counter()
    cache = FeatureStore.open(store)
    opened = perf_counter()
    ids = cache.ids
    listed = perf_counter()
    features = cache.select(ids, resident=False)
    selected = perf_counter()
    generator = torch.Generator().manual_seed(0)
    features.batch(torch.randint(len(ids), (64,), generator=generator))
    first = perf_counter()
    for _ in range(_BATCHES):
        features.batch(torch.randint(len(ids), (64,), generator=generator))
    return Needs(
        open_s=opened - start,
        ids_s=listed - opened,
        select_s=selected - listed,
        first_batch_s=first - selected,
        memory=private_bytes(this) - before,
    )
