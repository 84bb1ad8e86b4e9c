"""Command line of the manifests: build, list, show, check."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from manifests import adapters
from manifests.card import Card, builtin_names
from manifests.locate import DATA
from manifests.manifest import Manifest
from manifests.media import survey
from manifests.summary import print_cards, print_media, print_rows, print_summary

EPILOG = """\
examples:
  %(prog)s build demo                        generate the demonstration dataset
  %(prog)s build ravdess --source ~/RAVDESS  read a release from its folder
  %(prog)s build meld --source ~/MELD.Raw --no-media   its CSV files are enough
  %(prog)s build mine --source ~/mine         your own videos and table
  %(prog)s show demo -n 3

The documentation's page your-own-data.md describes the files of a dataset of your own.
"""


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Turn a dataset's release into one table of utterances and one card.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="read a release and write its manifest")
    build.add_argument(
        "name", metavar="NAME", help="a dataset that `list` names, or data of your own"
    )
    build.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="folder of the release, which the videos' paths are relative to (default: --out)",
    )
    build.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the manifest (default: data/NAME)"
    )
    build.add_argument(
        "--no-media",
        action="store_true",
        help="labels alone are there: count the missing videos, and do not insist on any",
    )
    build.add_argument(
        "--variant",
        metavar="NAME",
        help="another way to split the release, as fold1 of mustard (default folder: "
        "data/NAME-VARIANT); the documentation's page datasets.md lists them",
    )
    build.set_defaults(run=_build)

    listing = commands.add_parser("list", help="datasets, their licences, how to obtain them")
    listing.set_defaults(run=_list)

    dataset = "a dataset below data/, or a folder that holds manifest.parquet"
    show = commands.add_parser("show", help="counts, labels and first rows of a manifest")
    show.add_argument("name", metavar="NAME", help=dataset)
    show.add_argument("-n", type=int, default=5, metavar="ROWS", help="rows to show (default: 5)")
    show.set_defaults(run=_show)

    check = commands.add_parser("check", help="look for faults in a manifest")
    check.add_argument("name", metavar="NAME", help=dataset)
    check.set_defaults(run=_check)
    return top


def _build(args: argparse.Namespace, console: Console) -> None:
    out = args.out or DATA / (f"{args.name}-{args.variant}" if args.variant else args.name)
    source = args.source or out
    if args.source and not source.is_dir():
        raise ValueError(f"{source}: no such folder; --source is where the release was unpacked")
    try:
        manifest, notes = adapters.build(args.name, source, not args.no_media, args.variant)
    except ValueError as error:
        if args.source is None and _is_bare(source):
            raise ValueError(
                f"{str(error).rstrip('.')}; {source} holds no release: say --source FOLDER, the "
                "folder that it was unpacked to (make: DATA=FOLDER)"
            ) from error
        raise
    media = survey(manifest, source)
    if len(media.missing) == media.videos and not args.no_media:
        raise ValueError(
            f"{source / media.missing[0]}: no such file, nor any other of the {media.videos} "
            "videos: unpack them there, or say --no-media if only the labels are there yet"
        )
    manifest.save(out)
    print_summary(manifest, console)
    print_media(media, console)
    plain: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
    for note in notes:
        console.print(f"note: {note}", **plain)
    console.print(f"licence: {manifest.card.licence}", **plain)
    console.print(f"language model: {_language_model(manifest.card)}", **plain)
    console.print(f"wrote {manifest.path}", **plain)


def _is_bare(folder: Path) -> bool:
    """Whether nothing is there but what `build` writes."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return there <= {"card.yaml", "manifest.parquet"}


def _language_model(card: Card) -> str:
    """What `train` reads the texts with, and where that comes from: not everybody is online."""
    name = card.language_model
    if name.startswith("builtin:"):
        return f"{name}, which comes with this project"
    return (
        f"{name}, which `train` loads from the Hugging Face hub unless text.model names a folder "
        "that holds it (documentation: language-models.md)"
    )


def _list(args: argparse.Namespace, console: Console) -> None:
    print_cards([Card.builtin(name) for name in builtin_names()], console)


def _show(args: argparse.Namespace, console: Console) -> None:
    manifest = Manifest.load(args.name)
    print_summary(manifest, console)
    print_rows(manifest, args.n, console)
    console.print(f"digest {manifest.digest}", highlight=False)


def _check(args: argparse.Namespace, console: Console) -> None:
    manifest = Manifest.load(args.name)
    manifest.check()
    console.print(f"{manifest.path}: {len(manifest.table)} rows, no fault", highlight=False)


def main(arguments: list[str] | None = None, prog: str = "python -m manifests") -> int:
    """Run one command; 0 on success, 1 on a user's mistake (2, from argparse, on bad usage)."""
    args = parser(prog).parse_args(arguments)
    try:
        args.run(args, Console())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
