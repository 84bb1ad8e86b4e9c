"""The commands that evaluate finished runs by their predictions: metrics, compare and labels."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.command_line import add_command
from manifests.console import Console
from train.study.inputs import find_predictions

if TYPE_CHECKING:  # the imports take seconds; `--help` and typing errors must not wait
    from train.study.predictions import Predictions
    from train.study.significance import Interval, Resampling


def add_commands(commands: Any) -> None:
    """Register ``metrics``, ``compare`` and ``labels``."""
    metrics = add_command(
        commands,
        "metrics",
        _metrics,
        "compute the metrics of a run from its predictions",
        ["RUN", "RUN --split valid --set mosi --json metrics.json"],
        "Compute every metric of a run again from its saved predictions, with bootstrap "
        "intervals. Needs neither the model nor the data.",
    )
    metrics.add_argument("runs", type=Path, nargs=1, metavar="RUN", help="folder of a finished run")
    compare = add_command(
        commands,
        "compare",
        _compare,
        "compare two runs, with intervals and significance",
        ["RUN_A RUN_B", "RUN_A RUN_B --split valid --json comparison.json"],
        "Compare two runs on the same utterances: every metric, the difference with its paired "
        "bootstrap interval, and p of a paired permutation test; for classification also "
        "McNemar's exact test.",
    )
    compare.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folders of two runs")
    for command in (metrics, compare):
        command.add_argument(
            "--set", default="", metavar="NAME", help="metric set (default: the dataset's)"
        )
        command.add_argument(
            "--split", choices=("train", "valid", "test"), default="test", help="default: test"
        )
        command.add_argument(
            "--resamples", type=int, default=1000, metavar="N", help="samples (default: 1000)"
        )
        command.add_argument(
            "--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)"
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    labels = add_command(
        commands,
        "labels",
        _labels,
        "compare a run's pseudo labels with human unimodal labels",
        ["RUN", "runs/demo/semanticmac/20250101-120000-seed1"],
        "Correlation of the multimodal label, and of the pseudo labels that the run generated "
        "from it, with the human labels of text, audio and vision. For datasets that have "
        "unimodal labels (demo, sims, simsv2).",
    )
    labels.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")


def _metrics(options: argparse.Namespace, console: Console) -> None:
    find_predictions(options.runs[0])
    import pandas as pd

    from train.report import format_metric, rich_table
    from train.study.predictions import read_predictions
    from train.study.significance import intervals

    predictions = read_predictions(options.runs[0], options.split, options.set)
    with console.status("drawing samples"):
        found = intervals(predictions, _resampling(options))
    cells = pd.DataFrame(index=pd.Index(list(found), name="metric"))
    cells["value"] = [format_metric(name, interval.value) for name, interval in found.items()]
    cells["95% interval"] = [_range(name, interval) for name, interval in found.items()]
    console.print(rich_table(cells, _title(predictions, options)))
    numbers = {"figures": {name: vars(interval) for name, interval in found.items()}}
    _write(options, predictions, numbers)


def _compare(options: argparse.Namespace, console: Console) -> None:
    for run in options.runs:
        find_predictions(run)
    import pandas as pd

    from train.report import format_metric, print_plain, rich_table
    from train.study.predictions import read_predictions
    from train.study.significance import compare, mcnemar_p

    first, second = (read_predictions(run, options.split, options.set) for run in options.runs)
    with console.status("drawing samples"):
        found = compare(first, second, _resampling(options))
    cells = pd.DataFrame(index=pd.Index(list(found), name="metric"))
    cells["A"] = [format_metric(name, each.first.value) for name, each in found.items()]
    cells["B"] = [format_metric(name, each.second.value) for name, each in found.items()]
    cells["A - B"] = [format_metric(name, each.difference.value) for name, each in found.items()]
    cells["95% interval"] = [_range(name, each.difference) for name, each in found.items()]
    cells["p"] = ["undefined" if math.isnan(e.p) else f"{e.p:.3f}" for e in found.values()]
    print_plain(console, f"A: {first.run}\nB: {second.run}")
    console.print(rich_table(cells, _title(first, options)))
    numbers: dict[str, Any] = {"figures": {}}
    for name, each in found.items():
        compared = {"a": each.first, "b": each.second, "difference": each.difference}
        numbers["figures"][name] = {key: vars(interval) for key, interval in compared.items()}
        numbers["figures"][name]["p"] = each.p
    if first.task == "classification":
        numbers["mcnemar_p"] = mcnemar_p(first, second)
        print_plain(
            console, f"McNemar's exact test of the accuracies: p = {numbers['mcnemar_p']:.3f}"
        )
    _write(options, first, numbers)


def _labels(options: argparse.Namespace, console: Console) -> None:
    path = find_predictions(options.folder)
    import pandas as pd

    from manifests import Manifest
    from train.config import load_config
    from train.study.label_quality import pseudo_label_correlation, quality_table

    manifest = Manifest.load(load_config(options.folder).dataset)
    correlations = pseudo_label_correlation(manifest.table, pd.read_parquet(path))
    console.print(quality_table(correlations))


def _resampling(options: argparse.Namespace) -> Resampling:
    from train.study.significance import Resampling

    if options.resamples < 1:
        raise ValueError(f"--resamples is {options.resamples}: use 1 or more")
    return Resampling(options.resamples, options.seed)


def _title(predictions: Predictions, options: argparse.Namespace) -> str:
    return f"{options.split} split, {len(predictions.ids)} utterances, {predictions.metric_set}"


def _range(name: str, interval: Interval) -> str:
    from train.report import format_metric

    if math.isnan(interval.low):
        return "undefined"
    return f"{format_metric(name, interval.low)} to {format_metric(name, interval.high)}"


def _write(
    options: argparse.Namespace, predictions: Predictions, numbers: Mapping[str, Any]
) -> None:
    if not options.json:
        return
    from train.run_folder import write_json

    about = {
        "runs": [str(run) for run in options.runs],
        "split": options.split,
        "metrics": predictions.metric_set,
        "utterances": len(predictions.ids),
        "resamples": options.resamples,
        "seed": options.seed,
    }
    write_json(options.json, about | dict(numbers))
