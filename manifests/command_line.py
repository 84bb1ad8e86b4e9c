"""Parsers that the stages share: sub-commands whose help ends with examples, common options.

Nothing large is imported, so that ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.printing import say

if TYPE_CHECKING:
    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

WIDTH = 79


def add_command(
    commands: SubParsers,
    name: str,
    run: Callable[..., Any],
    summary: str,
    examples: Sequence[str],
    description: str = "",
    status: str = "",
) -> argparse.ArgumentParser:
    """Add a sub-command and return its parser.

    Args:
        commands: the result of ``add_subparsers``.
        name: the command's name.
        run: executes the command; stored as ``run`` in the parsed options.
        summary: one line without a full stop, for the list of commands.
        examples: the arguments of typical calls.
        description: one paragraph; by default the summary as a sentence.
        status: the exit statuses, if there are others than 0, 1 and 2.
    """
    lines = [textwrap.fill(status, WIDTH), ""] if status else []
    lines += ["examples:", *(f"  %(prog)s {example}".rstrip() for example in examples)]
    parser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description or f"{summary[0].upper()}{summary[1:]}.", WIDTH),
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_stores_option(parser: argparse.ArgumentParser, former: str) -> None:
    """Add ``--stores``, and the option's name in release 0.1."""
    parser.add_argument(
        "--stores",
        type=Path,
        metavar="FOLDER",
        default=Path("stores"),
        help="folder of the stores (default: stores)",
    )
    parser.add_argument(
        former, dest="stores", type=Path, action=_RenamedOption, help=argparse.SUPPRESS
    )


class _RenamedOption(argparse.Action):
    """An option's former name: still accepted, with a note; ``dest`` is the present name."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        """Print the note and set the option of the present name."""
        name = self.dest.replace("_", "-")
        print_note(f"{option} is now called --{name}; the next release drops the old name")
        setattr(namespace, self.dest, values)


def print_note(text: str) -> None:
    """Print a remark to standard error."""
    say(f"note: {text}", error=True)
