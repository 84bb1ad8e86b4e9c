"""``python -m train``: train on a cached dataset, judge and compare what came of it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

from train.predict import predict
from train.study import ablations, compare_methods, run_commands, search

EPILOG = """\
examples:
  %(prog)s fit dataset=demo
  %(prog)s fit dataset=demo seed=2 sclg.knn=5 text.trainable=none
  %(prog)s fit dataset=demo seeds=1,2,3
  %(prog)s fit dataset=data/mosi preset=mosi text.model=models/bert-base-uncased
  %(prog)s fit --resume runs/demo/semanticmac/20250101-120000-seed1
  %(prog)s evaluate runs/demo/semanticmac/20250101-120000-seed1 --split valid
  %(prog)s compare runs/demo/semanticmac/20250101-120000-seed1 runs/demo/lmf/20250102-...

A dataset is a folder with a manifest (a bare name means data/NAME); its features must have been
extracted (python -m extract NAME). Every key with its default and meaning: train/config.py.
"""


def main(arguments: list[str] | None = None, prog: str = "python -m train") -> int:
    """Run a command; the exit status.

    0 good, 1 something that the user can mend, 2 bad usage, 3 some of several runs failed, 130
    stopped by Ctrl-C.
    """
    parser = build_parser(prog)
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # keys that follow an option
        options.overrides += rest
    if {"train.precision=no", "train.precision='no'"} & set(getattr(options, "overrides", ())):
        _complain("note: write train.precision=fp32 instead of train.precision=no")
    try:
        return int(options.run(options, Console(quiet=os.environ.get("RANK", "0") != "0")) or 0)
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "stopped")
        return 130
    except (ValueError, OSError) as error:
        _complain(f"error: {error}")
        return 1


def _complain(line: str) -> None:
    """One line on stderr; of several processes, which all come to the same, the first says it."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train on a feature store; evaluate, compare and apply finished runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="train a model and report it")
    fit.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="dataset=NAME, any other key of the configuration, and seeds=COUNT or seeds=1,2,3 "
        "for one run each and their mean",
    )
    fit.add_argument(
        "--cache",
        metavar="STORE",
        help="path or URL of the feature store, as cache=STORE; from a URL it is mirrored first",
    )
    fit.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="go on with the run in this folder where it was stopped or killed; takes no keys",
    )
    fit.set_defaults(run=_fit, refuse=fit.error)
    evaluate = commands.add_parser("evaluate", help="judge a finished run on a split")
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    evaluate.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="default: test"
    )
    evaluate.set_defaults(run=_evaluate)
    for module in (ablations, compare_methods, run_commands, predict, search):
        module.add_commands(commands)
    return parser


# The imports below take seconds (PyTorch, transformers): `--help` and typos should not wait.


def _fit(options: argparse.Namespace, console: Console) -> int:
    from train.config import choose_config
    from train.fit import resume, train
    from train.report import quiet_transformers
    from train.study.study import Study, Variant, parse_seeds, pop_key, run_study
    from train.study.summary import show_run

    keys = bool(options.overrides or options.cache)
    if options.resume and keys:
        options.refuse("--resume takes no keys: the run goes on with those that it was begun with")
    if not options.resume and not keys:
        options.refuse("say what to train (KEY=VALUE ...) or which run shall go on (--resume RUN)")
    quiet_transformers(console)
    if options.resume:
        show_run(resume(options.resume, console), console)
        return 0
    seeds, overrides = pop_key(options.overrides, "seeds")
    if options.cache:
        overrides.append(f"cache={options.cache}")
    config = choose_config(overrides)
    if seeds is None:
        show_run(train(config, console), console)
        return 0
    study = Study("seeds", tuple(overrides), (Variant(config.method),), parse_seeds(seeds))
    return 3 if run_study(study, console, loud=True) else 0


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    from train.fit import evaluate_run
    from train.report import quiet_transformers

    quiet_transformers(console)
    evaluate_run(options.folder, options.split, console)


if __name__ == "__main__":
    sys.exit(main())
