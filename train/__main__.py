"""``python -m train``: train on a feature store, then evaluate and compare the runs.

PyTorch and transformers are imported by the commands: `--help`, wrong keys and wrong paths are
reported at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from manifests.command_line import add_command
from manifests.console import Console
from manifests.printing import say
from train.predict import predict
from train.study import ablations, compare_methods, run_commands, search

EPILOG = """\
`%(prog)s COMMAND --help` lists the options of a command. A dataset is
a folder with a manifest (a bare name means data/NAME); extract it first.

examples:
  %(prog)s fit dataset=demo
  %(prog)s evaluate runs/demo/semanticmac/20250101-120000-seed1 --split valid
"""


def main(arguments: list[str] | None = None, prog: str = "python -m train") -> int:
    """Run a command and return its exit status.

    0 success, 1 an error, 2 wrong usage, 3 some of several runs or clips failed, 130 stopped by
    Ctrl-C.
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
    """Print a line to stderr; with several processes, only the first prints."""
    if os.environ.get("RANK", "0") == "0":
        say(line, error=True)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train on a feature store; evaluate, compare and apply finished runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    fit = add_command(
        commands,
        "fit",
        _fit,
        "train a model and print its metrics",
        [
            "dataset=demo",
            "dataset=demo seeds=1,2,3",
            "dataset=demo seed=2 sclg.knn=5 text.trainable=none",
            "dataset=data/mosi preset=mosi text.model=models/bert",
            "--resume runs/demo/semanticmac/20250101-120000-seed1",
        ],
        "Train a model on a dataset's features, print its metrics on the test split and write "
        "its predictions and weights to runs/DATASET/METHOD/. The module train.config documents "
        "every key with its default.",
        status=(
            "Exit status: 0 success, 1 error, 2 wrong usage, 3 some of several seeds failed, 130 "
            "interrupted: resume with --resume."
        ),
    )
    fit.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="dataset=NAME, any other key of the configuration, and seeds=COUNT or seeds=1,2,3 "
        "for one run per seed and their mean",
    )
    fit.add_argument(
        "--cache",
        metavar="STORE",
        help="path or URL of the feature store, same as cache=STORE; a store at a URL is copied "
        "to the mirror first",
    )
    fit.add_argument(
        "--resume",
        type=Path,
        metavar="RUN",
        help="resume the interrupted run in this folder (no KEY=VALUE allowed)",
    )
    fit.set_defaults(refuse=fit.error)
    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "evaluate a finished run on a split",
        ["RUN", "runs/demo/semanticmac/20250101-120000-seed1 --split valid"],
        "Load the weights of a finished run, predict a split of its dataset and print the metrics.",
    )
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    evaluate.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="default: test"
    )
    for module in (ablations, compare_methods, run_commands, predict, search):
        module.add_commands(commands)
    return parser


def _fit(options: argparse.Namespace, console: Console) -> int:
    from train.config import check_store, choose_config, load_config
    from train.study.inputs import parse_seeds, pop_key

    keys = bool(options.overrides or options.cache)
    if options.resume and keys:
        options.refuse("--resume takes no keys: the run keeps the keys that it was started with")
    if not options.resume and not keys:
        options.refuse("give KEY=VALUE to start a run, or --resume RUN")
    if options.resume:
        load_config(options.resume)
        return _resume(options.resume, console)
    seeds, overrides = pop_key(options.overrides, "seeds")
    if options.cache:
        overrides.append(f"cache={options.cache}")
    config = choose_config(overrides)
    check_store(config)

    from train.fit import train
    from train.report import quiet_transformers
    from train.study.study import Study, Variant, run_study
    from train.study.summary import show_run

    quiet_transformers(console)
    if seeds is None:
        show_run(train(config, console), console)
        return 0
    study = Study("seeds", tuple(overrides), (Variant(config.method),), parse_seeds(seeds))
    return 3 if run_study(study, console, loud=True) else 0


def _resume(run: Path, console: Console) -> int:
    from train.fit import resume
    from train.report import quiet_transformers
    from train.study.summary import show_run

    quiet_transformers(console)
    show_run(resume(run, console), console)
    return 0


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    from train.config import load_config

    load_config(options.folder)

    from train.fit import evaluate_run
    from train.report import quiet_transformers

    quiet_transformers(console)
    evaluate_run(options.folder, options.split, console)


if __name__ == "__main__":
    sys.exit(main())
