"""Compare the speed of reading batches from a feature store with other storage formats.

A store of CMU-MOSEI's size is generated and written once per competitor; all of them then read
the same random batches of 64 utterances, each in a fresh process, in turns. The results are
printed as a table.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks import growth, isolated, report
from benchmarks.command_line import benchmark_parser
from benchmarks.generate import generate
from benchmarks.stores import COMPETITORS
from benchmarks.timing import Timing, load_and_copy, measure
from cache import FeatureStore
from train.batch_order import epoch_batches

MOSEI = 22856
SIZES = {"tiny": [128], "small": [MOSEI // 10], "full": [MOSEI // 10, MOSEI]}
BATCH = 64
REFERENCES = ("lmdb_pickle", "gather")
# The stores of one stage at a time are on the disk. The references run in every stage, so that
# each ratio compares two measurements of the same minute.
STAGES = (
    ("resident", "mapped", "lmdb_raw", "zarr_slices", "zarr_arrays"),
    ("arrow", "safetensors", "hdf5"),
)
WORK = ("benchmarks.growth", "benchmarks.timing")  # the modules that other processes import

console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    sizes = "tiny: a smoke test; small: a tenth of MOSEI; full: a tenth and all of it"
    parser = benchmark_parser("read", __doc__, SIZES, sizes)
    parser.add_argument(
        "--growth", action="store_true", help="our reader only, on 1, 4 and 16 tenths"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: 1)")
    parser.add_argument("--scratch", type=Path, help="temporary stores, up to 8 GB (default: /tmp)")
    options = parser.parse_args(arguments)
    isolated.prepare(WORK)
    with tempfile.TemporaryDirectory(prefix="bench-read-", dir=options.scratch) as scratch:
        if options.growth:
            unit = SIZES[options.size][0]
            growth.run(Path(scratch), unit, options.runs, options.threads, options.out)
        else:
            _compare(Path(scratch), options)
    return 0


def _compare(scratch: Path, options: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    texts: list[str] = []
    svg = ""
    for utterances in SIZES[options.size]:  # ratios and plot are those of the last, the largest
        folder = scratch / str(utterances)
        store = generate(folder, utterances)
        samples, sizes = _run_stages(store, folder, options)
        measured = [
            {"utterances": utterances, "name": name, **_summary(name, samples), **sizes[name]}
            for name in COMPETITORS
        ]
        measured.sort(key=lambda row: row["packed"], reverse=True)
        rows += measured
        ratios = _ratios(measured, store, options)
        texts.append(
            f"{utterances:,} utterances\n\n{_table(measured)}\n\n{report.ratio_table(ratios)}\n"
        )
        svg = _plot(measured, f"Packed batches of {BATCH} out of {utterances:,} utterances")
        shutil.rmtree(folder)
    report.write(options.out, "read", ratios, rows, options.threads, "\n".join(texts), svg)
    print("\n".join(texts))


def _run_stages(
    store: Path, folder: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Timing]], dict[str, dict[str, int]]]:
    """Return the timings per run and stage, and the number of files and bytes per competitor."""
    cache = FeatureStore.open(store)
    features = cache.select(cache.ids, resident=False)
    batches = random_batches(len(features), epoch=0)
    samples: list[dict[str, Timing]] = []
    sizes: dict[str, dict[str, int]] = {}
    for stage in STAGES:
        names = [*REFERENCES, *stage]
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            if name not in sizes:
                COMPETITORS[name].write(features, folder / name)
                own = any((folder / name).iterdir())
                sizes[name] = _size(folder / name if own else store, name, len(features))
        os.sync()  # no pages are written back during the measurements
        _warm([store, *(folder / name for name in names)])
        turns = [(run, name) for run in range(options.runs) for name in _shuffled(names, run)]
        stage_samples: list[dict[str, Timing]] = [{} for _ in range(options.runs)]
        for run, name in track(
            turns,
            f"{len(features):,} utterances: {', '.join(names)}",
            console=console,
            disable=not console.is_terminal,
        ):
            timing, memory = isolated.run_isolated(
                measure, name, store, folder / name, batches, options.seconds, options.threads
            )
            stage_samples[run][name] = Timing(**{**asdict(timing), "memory": memory})
        samples += stage_samples
        for name in stage:
            shutil.rmtree(folder / name)
    return samples, sizes


def random_batches(utterances: int, epoch: int) -> list[Tensor]:
    """Return one epoch of random batches; each utterance occurs once."""
    generator = torch.Generator().manual_seed(epoch)
    return list(torch.randperm(utterances, generator=generator).split(BATCH))


def padding(lengths: Tensor, batches: Iterable[Tensor]) -> float:
    """Return the number of rows in padded batches, divided by the number without padding."""
    computed = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return computed / int(lengths.sum())


def _summary(name: str, samples: Sequence[dict[str, Timing]]) -> dict[str, Any]:
    """Return the medians of one competitor and of its ratios to the references of the same run."""
    runs = [asdict(sample[name]) for sample in samples if name in sample]
    summary: dict[str, Any] = {"title": COMPETITORS[name].title}
    summary |= {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    for reference in REFERENCES:
        for what in ("packed", "padded"):
            summary[f"{what}_vs_{reference}"] = statistics.median(
                getattr(sample[name], what) / getattr(sample[reference], what)
                for sample in samples
                if name in sample
            )
    if COMPETITORS[name].limit:  # it keeps its rows twice: a reference, not a store
        summary |= {"open_s": None, "first_batch_s": None, "memory": None}
    return summary


def _ratios(
    rows: Sequence[dict[str, Any]], store: Path, options: argparse.Namespace
) -> dict[str, float]:
    by_name = {row["name"]: row for row in rows}
    loads = [isolated.run_isolated(load_and_copy, store)[0] for _ in range(options.runs)]
    cache = FeatureStore.open(store)
    lengths = torch.from_numpy(np.diff(cache.offsets("vision")))
    bucketed = epoch_batches(lengths, BATCH, seed=1, epoch=1)
    return {
        **{
            f"{ours}_vs_{reference}": by_name[ours][f"packed_vs_{reference}"]
            for ours in ("resident", "mapped")
            for reference in REFERENCES
        },
        "first_batch_mapped_s": by_name["mapped"]["first_batch_s"],
        "load_vs_memcpy": statistics.median(load / copy for load, copy in loads),
        "padding_bucketed": padding(lengths, bucketed),
        "padding_random": padding(lengths, random_batches(len(lengths), epoch=1)),
    }


def _table(rows: Sequence[dict[str, Any]]) -> str:
    headings = [
        "Store",
        "packed/s",
        "x LMDB-pickle",
        "x limit",
        "first pass/s",
        "padded/s",
        "x LMDB-pickle",
        "open ms",
        "first batch ms",
        "files",
        "GB",
        "memory MB",
    ]
    cells = []
    for row in rows:
        values = [
            row["packed"],
            row["packed_vs_lmdb_pickle"],
            row["packed_vs_gather"],
            row["first_pass"],
            row["padded"],
            row["padded_vs_lmdb_pickle"],
            _scaled(row["open_s"], 1e3),
            _scaled(row["first_batch_s"], 1e3),
        ]
        size = [f"{row['files']:,}", f"{row['bytes'] / 1e9:.2f}"]
        memory = report.number(_scaled(row["memory"], 1e-6))
        cells.append([row["title"], *map(report.number, values), *size, memory])
    return report.markdown(headings, cells)


def _plot(rows: Sequence[dict[str, Any]], title: str) -> str:
    bars = [(row["title"], row["packed"], COMPETITORS[row["name"]].ours) for row in rows]
    return report.bars_svg(title, "utterances per second", bars)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _shuffled(names: Sequence[str], run: int) -> list[str]:
    """Return a different order for every run, so that no two competitors always run in sequence."""
    return random.Random(run).sample(list(names), len(names))


def _size(folder: Path, name: str, utterances: int) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    subset = COMPETITORS[name].subset
    scale = utterances / min(subset, utterances) if subset else 1.0
    # Blocks on the disk, because the files of LMDB are sparse.
    total = sum(path.stat().st_blocks * 512 for path in files)
    return {"files": round(len(files) * scale), "bytes": round(total * scale)}


def _warm(folders: Iterable[Path]) -> None:
    """Read every file into the page cache."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.read(8 << 20):
                        pass


if __name__ == "__main__":
    sys.exit(main())
