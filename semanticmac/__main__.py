"""``semanticmac STAGE ...``: run a stage, same as ``python -m STAGE ...``.

The installed command does not search the current folder for modules: a ``train.py`` there hides
the stage from ``python -m train``, but not from ``semanticmac train``.
"""

import argparse
import sys
from collections.abc import Callable

from semanticmac import __version__

STAGES = {
    "manifests": "build, list and check the tables that describe datasets",
    "extract": "decode every video once and publish its features as a store",
    "cache": "inspect, verify, share and convert feature stores",
    "train": "train, evaluate and compare models on a store",
}

EPILOG = """\
`semanticmac STAGE --help` lists the options of a stage.

examples:
  semanticmac extract meld --data /data/MELD.Raw
  semanticmac train fit dataset=meld seeds=1,2,3,4,5
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a stage and return its exit status; argparse exits with 2 on an unknown stage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    stage = build_parser().parse_args(arguments[:1]).stage  # the rest is parsed by the stage
    return _main_of(stage)(arguments[1:], f"semanticmac {stage}")


def _main_of(stage: str) -> Callable[[list[str], str], int]:
    """Import the main function of one stage only: a stage may need seconds to be imported."""
    if stage == "manifests":
        from manifests.__main__ import main as run
    elif stage == "extract":
        from extract.__main__ import main as run
    elif stage == "cache":
        from cache.__main__ import main as run
    else:
        from train.__main__ import main as run
    return run


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command's first word."""
    parser = argparse.ArgumentParser(
        prog="semanticmac",
        description="Multimodal affective computing from videos of people speaking:\n"
        "extract features once, train often.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=f"semanticmac {__version__}")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE", title="stages")
    for name, purpose in STAGES.items():
        stages.add_parser(name, help=purpose, add_help=False)
    return parser


if __name__ == "__main__":
    sys.exit(main())
