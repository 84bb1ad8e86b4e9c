"""Measure the neighbour search for pseudo labels, and its growth with the training set.

Exact search and FAISS run, each in a fresh process, on features like those of one sub-task in one
epoch: rows of the default width near a curved sheet of 16 dimensions. An epoch of training is
timed as well: the ratio is the share of label generation at CMU-MOSEI's size.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks import isolated, report
from benchmarks.command_line import benchmark_parser
from benchmarks.training import BATCH, compare
from train.methods.semanticmac import PSEUDO
from train.model.neighbours import FAISS_FROM, nearest

MOSEI = 16326  # utterances of the training split
WIDTH, SHEET, KNN = 128, 16, 10
# Per size: the searches (rows, index) and the language models whose epoch they are compared with.
SIZES: dict[str, tuple[list[tuple[int, str]], list[str]]] = {
    "tiny": ([(300, "exact"), (600, "exact"), (600, "faiss")], ["tiny"]),
    "small": (
        [(1300, "exact"), (MOSEI, "exact"), (MOSEI, "faiss"), (100_000, "faiss")],
        ["bert_base"],
    ),
    "full": (
        [
            *((n, "exact") for n in (1300, MOSEI, 100_000)),
            *((n, "faiss") for n in (MOSEI, 100_000, 1_000_000)),
        ],
        ["bert_base", "minilm"],
    ),
}
SAMPLED = 1000  # rows whose neighbours are compared with the exact ones

console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    sizes = (
        "tiny: a smoke test; small: exact to 16 thousand rows, FAISS to 100 thousand; full: exact "
        "to 100 thousand, FAISS to a million, a quarter of an hour"
    )
    parser = benchmark_parser("sclg", __doc__, SIZES, sizes, runs=3)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: 1)")
    options = parser.parse_args(arguments)
    isolated.prepare(("benchmarks.training", "train.model.neighbours"))
    searches, models = SIZES[options.size]
    rows = []
    for n, index in track(searches, "searches", console=console, disable=not console.is_terminal):
        runs = options.runs if n <= MOSEI else 1
        (seconds, recall), memory = isolated.run_isolated(search, n, index, options.threads, runs)
        rows.append(
            {"n": n, "index": index, "seconds": seconds, "recall": recall, "memory": memory}
        )
    epochs = {model: _epoch(model, options) for model in models}
    ratios = ratios_of(rows, epochs)
    text = f"{_table(rows)}\n\n{report.ratio_table(ratios)}\n"
    report.write(options.out, "sclg", ratios, rows, options.threads, text)
    print(text)
    return 0


def search(n: int, index: str, threads: int, runs: int) -> tuple[float, float]:
    """Return the median seconds to find the neighbours of all ``n`` rows, and the recall.

    On one thread the seconds are CPU time, which other programs do not affect; else wall time.
    """
    torch.set_num_threads(threads)
    clock = process_time if threads == 1 else perf_counter
    features_ND = sheet(n)
    seconds = []
    for _ in range(runs):
        start = clock()
        _, found_NK = nearest(features_ND, KNN, index=index)
        seconds.append(clock() - start)
    some = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:SAMPLED]
    _, true_RK = nearest(features_ND, KNN, some, "exact")
    return statistics.median(seconds), recall(found_NK[some], true_RK)


def sheet(n: int) -> Tensor:
    """Return features ``[n, WIDTH]`` near a curved sheet of `SHEET` dimensions, with noise."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(n, SHEET, generator=generator)
    bend = torch.randn(SHEET, WIDTH, generator=generator) / SHEET**0.5
    return torch.tanh(place @ bend) + 0.05 * torch.randn(n, WIDTH, generator=generator)


def recall(found_RK: Tensor, true_RK: Tensor) -> float:
    """Return the fraction of the true neighbours that was found."""
    return float((found_RK[:, :, None] == true_RK[:, None]).any(1).float().mean())


def ratios_of(rows: list[dict[str, Any]], epochs: dict[str, float]) -> dict[str, float]:
    """Return shares of an epoch, recall and growth; the first language model has no suffix."""
    exact = [row for row in rows if row["index"] == "exact"]
    by_faiss = {row["n"]: row for row in rows if row["index"] == "faiss"}
    # The index that sclg.index=auto chooses at each size.
    chosen = [row for row in exact if row["n"] < FAISS_FROM]
    chosen += [row for n, row in by_faiss.items() if n >= FAISS_FROM]
    at_mosei = max((row for row in exact if row["n"] <= MOSEI), key=lambda row: row["n"])
    shares = {
        f"share_of_epoch_16k{f'_{model}' if i else ''}": len(PSEUDO) * at_mosei["seconds"] / epoch
        for i, (model, epoch) in enumerate(epochs.items())
    }
    return {
        **shares,
        "recall_ann": min(row["recall"] for row in by_faiss.values()),
        "growth_exponent": exponent(chosen, "seconds"),
        "growth_exponent_exact": exponent(exact, "seconds"),
        "memory_growth_exponent": exponent(chosen, "memory"),
    }


def exponent(rows: list[dict[str, Any]], what: str) -> float:
    """Return the slope between smallest and largest in logarithms: 1 linear, 2 quadratic."""
    first, last = min(rows, key=lambda row: row["n"]), max(rows, key=lambda row: row["n"])
    return math.log(last[what] / first[what]) / math.log(last["n"] / first["n"])


def _epoch(model: str, options: argparse.Namespace) -> float:
    """Return the seconds of the training steps of one epoch at CMU-MOSEI's size."""
    with tempfile.TemporaryDirectory(prefix="bench-sclg-") as folder:
        given = (Path(folder), model, WIDTH, "fp32", "cpu")
        timed, _ = isolated.run_isolated(compare, *given, options.threads, options.runs)
    return math.ceil(MOSEI / BATCH) * float(timed["step_s"])


def _table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            f"{row['n']:,}",
            row["index"],
            report.number(row["seconds"]),
            report.number(1e6 * row["seconds"] / row["n"]),
            report.number(row["memory"] / 1e6),
            report.number(row["recall"]),
        ]
        for row in sorted(rows, key=lambda row: row["n"])
    ]
    headings = ["utterances", "search", "seconds", "µs each", "memory MB", "recall"]
    return report.markdown(headings, cells)


if __name__ == "__main__":
    sys.exit(main())
