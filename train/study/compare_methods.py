"""Train several methods on the same features with the same trainer."""

from __future__ import annotations

import argparse
from typing import Any

from manifests.command_line import add_command
from manifests.console import Console
from train.config import choose_config
from train.study.inputs import parse_seeds, pop_key, select_names

REFERENCE = "semanticmac"


def add_commands(commands: Any) -> None:
    """Register ``compare-methods``."""
    parser = add_command(
        commands,
        "compare-methods",
        _compare_methods,
        "train several methods on one store and put them in one table",
        ["dataset=meld seeds=5", "dataset=demo methods=text,audio,mean"],
        "Train methods on one store with the same batches, protocol and preset. The table contains "
        "mean and standard deviation over the seeds, parameters, seconds per epoch, and p of a "
        f"paired test against {REFERENCE}. After an interruption, the same command resumes: "
        "finished runs are not trained again. The table is printed and written to "
        "runs/DATASET/studies/compare-methods as Markdown, LaTeX and CSV.",
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="dataset=NAME, methods=NAME,NAME (default: all), seeds=COUNT or "
        "seeds=1,2,3 (default: 1), and any key of the configuration",
    )


def _compare_methods(options: argparse.Namespace, console: Console) -> int:
    seeds, rest = pop_key(options.overrides, "seeds")
    methods, rest = pop_key(rest, "methods")
    choose_config(rest)  # errors in keys are reported before the imports below, which take seconds

    from train.methods import METHODS
    from train.report import quiet_transformers
    from train.study.study import Study, Variant, run_study

    names = select_names(methods, list(METHODS), "method", always=REFERENCE)
    variants = tuple(Variant(name, (f"method={name}",)) for name in names)
    quiet_transformers(console)
    study = Study("compare-methods", tuple(rest), variants, parse_seeds(seeds or "1"), REFERENCE)
    return 3 if run_study(study, console) else 0
