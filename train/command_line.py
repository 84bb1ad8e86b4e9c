"""Parsers of the sub-commands: each description is wrapped, each help ends with examples."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

WIDTH = 79


def add_command(
    commands: Any, name: str, summary: str, description: str, examples: list[str], status: str = ""
) -> argparse.ArgumentParser:
    """Add a sub-command and return its parser.

    Args:
        commands: what ``add_subparsers`` returned.
        name: of the sub-command.
        summary: one line for the list of sub-commands.
        description: one paragraph.
        examples: the arguments of typical calls.
        status: the exit statuses, where they are more than 0, 1 and 2.
    """
    lines = [textwrap.fill(status, WIDTH), ""] if status else []
    lines += ["examples:", *(f"  %(prog)s {example}" for example in examples)]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=textwrap.fill(description, WIDTH),
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser
