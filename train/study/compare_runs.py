"""The commands that judge finished runs by their predictions: metrics and compare."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from train.study.predictions import Predictions
    from train.study.significance import Estimate, Resampling


def add_commands(commands: Any) -> None:
    """Register ``metrics`` and ``compare``."""
    metrics = commands.add_parser(
        "metrics",
        help="the figures of a run, from its predictions alone",
        description="Compute every figure of a run again from its predictions, with bootstrap "
        "intervals. Needs neither the model nor the data.",
    )
    metrics.add_argument("runs", type=Path, nargs=1, metavar="RUN", help="the run's folder")
    metrics.set_defaults(run=_metrics)
    versus = commands.add_parser(
        "compare",
        help="two runs side by side, with intervals and significance",
        description="Put two runs on the same utterances side by side: every figure, their "
        "difference with its paired bootstrap interval, and p of a paired permutation test; where "
        "one class is chosen also McNemar's exact test.",
    )
    versus.add_argument("runs", type=Path, nargs=2, metavar="RUN", help="folders of two runs")
    versus.set_defaults(run=_compare)
    for command in (metrics, versus):
        command.add_argument(
            "--set", default="", metavar="NAME", help="metric set (default: the dataset's)"
        )
        command.add_argument(
            "--split", choices=("train", "valid", "test"), default="test", help="default: test"
        )
        command.add_argument(
            "--resamples", type=int, default=1000, metavar="N", help="draws (default: 1000)"
        )
        command.add_argument(
            "--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)"
        )
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="write the numbers there as well"
        )


# The imports below take seconds (pandas, SciPy): `--help` and typos should not wait.


def _metrics(options: argparse.Namespace, console: Console) -> None:
    import pandas as pd

    from train.report import shown
    from train.study.predictions import read_predictions
    from train.study.significance import intervals
    from train.tables import rich_table

    predictions = read_predictions(options.runs[0], options.split, options.set)
    with console.status("drawing samples"):
        found = intervals(predictions, _resampling(options))
    cells = pd.DataFrame(index=pd.Index(list(found), name="figure"))
    cells["value"] = [shown(name, each.value) for name, each in found.items()]
    cells["95% interval"] = [_range(name, each) for name, each in found.items()]
    console.print(rich_table(cells, _title(predictions, options)))
    _write(options, predictions, {"figures": {name: vars(each) for name, each in found.items()}})


def _compare(options: argparse.Namespace, console: Console) -> None:
    import pandas as pd

    from train.report import say, shown
    from train.study.predictions import read_predictions
    from train.study.significance import compare, mcnemar_p
    from train.tables import rich_table

    first, second = (read_predictions(run, options.split, options.set) for run in options.runs)
    with console.status("drawing samples"):
        found = compare(first, second, _resampling(options))
    cells = pd.DataFrame(index=pd.Index(list(found), name="figure"))
    cells["A"] = [shown(name, each.first.value) for name, each in found.items()]
    cells["B"] = [shown(name, each.second.value) for name, each in found.items()]
    cells["A - B"] = [shown(name, each.difference.value) for name, each in found.items()]
    cells["95% interval"] = [_range(name, each.difference) for name, each in found.items()]
    cells["p"] = ["undefined" if math.isnan(e.p) else f"{e.p:.3f}" for e in found.values()]
    say(console, f"A: {first.run}\nB: {second.run}")
    console.print(rich_table(cells, _title(first, options)))
    numbers: dict[str, Any] = {"figures": {}}
    for name, each in found.items():
        estimates = {"a": each.first, "b": each.second, "difference": each.difference}
        numbers["figures"][name] = {key: vars(value) for key, value in estimates.items()}
        numbers["figures"][name]["p"] = each.p
    if first.task == "classification":
        numbers["mcnemar_p"] = mcnemar_p(first, second)
        say(console, f"McNemar's exact test of the accuracies: p = {numbers['mcnemar_p']:.3f}")
    _write(options, first, numbers)


def _resampling(options: argparse.Namespace) -> Resampling:
    from train.study.significance import Resampling

    if options.resamples < 1:
        raise ValueError(f"--resamples is {options.resamples}: one draw is the least")
    return Resampling(options.resamples, options.seed)


def _title(predictions: Predictions, options: argparse.Namespace) -> str:
    return f"{options.split} split, {len(predictions.ids)} utterances, {predictions.metrics}"


def _range(name: str, estimate: Estimate) -> str:
    from train.report import shown

    if math.isnan(estimate.low):
        return "undefined"
    return f"{shown(name, estimate.low)} to {shown(name, estimate.high)}"


def _write(
    options: argparse.Namespace, predictions: Predictions, numbers: Mapping[str, Any]
) -> None:
    if not options.json:
        return
    from train.run_folder import write_json

    asked = {
        "runs": [str(run) for run in options.runs],
        "split": options.split,
        "metrics": predictions.metrics,
        "utterances": len(predictions.ids),
        "resamples": options.resamples,
        "seed": options.seed,
    }
    write_json(options.json, asked | dict(numbers))
