"""``python -m train``: train a model on a cached dataset, judge a finished run again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

EPILOG = """\
examples:
  python -m train fit dataset=demo
  python -m train fit dataset=demo seed=2 sclg.knn=5 text.trainable=none
  python -m train fit dataset=data/mosi preset=mosi text.model=models/bert-base-uncased
  python -m train evaluate runs/demo/semanticmac/20250101-120000-seed1 --split valid

A dataset is a folder with a manifest (a bare name means data/NAME); its features must have been
extracted (make extract DATASET=NAME). Every key with its default and meaning: train/config.py.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status: 0 good, 1 something the user can mend, 2 bad usage."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # keys that follow an option
        options.overrides += rest
    try:
        options.run(options, Console())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser("fit", help="train a model and report it")
    fit.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="dataset=NAME, and any other key of the configuration",
    )
    fit.add_argument(
        "--cache",
        metavar="STORE",
        help="path or URL of the feature store, as cache=STORE; from a URL it is mirrored first",
    )
    fit.set_defaults(run=_fit)
    evaluate = commands.add_parser("evaluate", help="judge a finished run on a split")
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    evaluate.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="default: test"
    )
    evaluate.set_defaults(run=_evaluate)
    return parser


# The imports below take seconds (PyTorch, transformers): `--help` and typos should not wait.


def _fit(options: argparse.Namespace, console: Console) -> None:
    from train.config import choose_config
    from train.fit import train

    cache = [f"cache={options.cache}"] if options.cache else []
    config = choose_config([*options.overrides, *cache])
    _hush(console)
    train(config, console)


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    from train.fit import evaluate_run

    _hush(console)
    evaluate_run(options.folder, options.split, console)


def _hush(console: Console) -> None:
    """Keep transformers from talking between our lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not console.is_terminal:
        logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
