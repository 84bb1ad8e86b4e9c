"""Every method on the same features, by the same trainer, in one table."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

REFERENCE = "semanticmac"


def add_commands(commands: Any) -> None:
    """Register ``compare-methods``."""
    parser = commands.add_parser(
        "compare-methods",
        help="train several methods on one cache and put them in one table",
        description="Train methods side by side on one cache: same batches, same protocol, same "
        "preset. The table holds mean and standard deviation over the seeds, parameters, seconds "
        f"per epoch, and p of a paired test against {REFERENCE}. Run it again after an "
        "interruption: what is trained is not trained again. It is printed, and written as "
        "Markdown, LaTeX and CSV below runs/DATASET/studies/compare-methods.",
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="dataset=NAME, methods=all (default) or methods=NAME,NAME, seeds=COUNT or "
        "seeds=1,2,3 (default 1), and any key of the configuration",
    )
    parser.set_defaults(run=_compare_methods)


def _compare_methods(options: argparse.Namespace, console: Console) -> int:
    from train.methods import METHODS
    from train.report import quiet_transformers
    from train.study.study import Study, Variant, chosen, parse_seeds, run_study, take_key

    seeds, rest = take_key(options.overrides, "seeds")
    methods, rest = take_key(rest, "methods")
    names = chosen(methods, list(METHODS), "method", always=REFERENCE)
    variants = tuple(Variant(name, (f"method={name}",)) for name in names)
    quiet_transformers(console)
    study = Study("compare-methods", tuple(rest), variants, parse_seeds(seeds or "1"), REFERENCE)
    return 3 if run_study(study, console) else 0
