"""``python -m manifests``: build, list, show and check datasets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.card import Card, builtin_names
from manifests.command_line import add_command
from manifests.locate import CARD, DATA, MANIFEST, check_known, find_manifest
from manifests.printing import say

if TYPE_CHECKING:
    from manifests.console import Console
    from manifests.manifest import Manifest

# pandas takes most of a second to import. So modules that need it are imported when a command runs,
# after its arguments and paths were checked.

EPILOG = """\
`%(prog)s COMMAND --help` lists the options of a command.

examples:
  %(prog)s build demo                        generate the demonstration dataset
  %(prog)s build ravdess --source ~/RAVDESS  read a release from its folder
"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    top = argparse.ArgumentParser(
        prog=prog,
        description="Turn a dataset's release into one table of utterances and one card.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = add_command(
        commands,
        "build",
        _build,
        "read a release and write its manifest",
        [
            "ravdess --source ~/RAVDESS",
            "meld --source ~/MELD.Raw --no-media  # labels only",
            "mine --source ~/mine  # your own videos and table",
        ],
        "Read a release and write its manifest. The documentation describes the files of your own "
        "dataset (page your-own-data.md).",
    )
    build.add_argument(
        "name", metavar="NAME", help="a dataset that `list` names, or a name for your own data"
    )
    build.add_argument(
        "--source",
        type=Path,
        metavar="FOLDER",
        help="folder of the release; the videos' paths are relative to it (default: --out)",
    )
    build.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder of the manifest (default: data/NAME)"
    )
    build.add_argument(
        "--no-media",
        action="store_true",
        help="only the labels are available: missing videos are counted, not an error",
    )
    build.add_argument(
        "--variant",
        metavar="NAME",
        help="another split of the release, for instance fold1 of mustard (default folder: "
        "data/NAME-VARIANT); the documentation's page datasets.md lists them",
    )

    summary = "list the datasets, their licences and sources"
    add_command(commands, "list", _list, summary, ["", "| less"])

    dataset = f"a dataset below data/, or a folder with {MANIFEST}"
    show = add_command(
        commands,
        "show",
        _show,
        "show counts, labels and the first rows of a manifest",
        ["demo -n 3", "~/manifests/mine"],
    )
    show.add_argument("name", metavar="NAME", help=dataset)
    show.add_argument("-n", type=int, default=5, metavar="ROWS", help="rows to show (default: 5)")

    check = add_command(
        commands, "check", _check, "check a manifest for faults", ["demo", "~/manifests/mine"]
    )
    check.add_argument("name", metavar="NAME", help=dataset)
    return top


def _build(args: argparse.Namespace, console: Console) -> None:
    out = args.out or DATA / (f"{args.name}-{args.variant}" if args.variant else args.name)
    source = args.source or out
    if args.source and not source.is_dir():
        raise ValueError(f"{source}: no such folder; --source is where the release was unpacked")
    try:
        manifest, notes = _read_release(args, source)
    except ValueError as error:
        if args.source is None and _is_bare(source):
            raise ValueError(
                f"{str(error).rstrip('.')}; {source} contains no release: pass --source FOLDER, "
                "where it was unpacked (make: DATA=FOLDER)"
            ) from error
        raise

    from manifests.media import survey
    from manifests.summary import print_media, print_summary

    media = survey(manifest, source)
    if len(media.missing) == media.videos and not args.no_media:
        raise ValueError(
            f"{source / media.missing[0]}: no such file, nor any other of the {media.videos} "
            "videos: unpack them there, or pass --no-media if only the labels are available"
        )
    manifest.save(out)
    print_summary(manifest, console)
    print_media(media, console)
    plain: dict[str, Any] = {"highlight": False, "soft_wrap": True}
    for note in notes:
        console.print(f"note: {note}", **plain)
    console.print(f"licence: {manifest.card.licence}", **plain)
    console.print(f"language model: {_language_model(manifest.card)}", **plain)
    console.print(f"wrote {manifest.path}", **plain)


def _read_release(args: argparse.Namespace, source: Path) -> tuple[Manifest, list[str]]:
    check_known(args.name, source)
    from manifests import adapters

    return adapters.build(args.name, source, not args.no_media, args.variant)


def _is_bare(folder: Path) -> bool:
    """Return whether a folder is missing or contains only files that `build` writes."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return found <= {CARD, MANIFEST}


def _language_model(card: Card) -> str:
    """Return the language model that `train` uses by default, and where it is loaded from."""
    name = card.language_model
    if name.startswith("builtin:"):
        return f"{name}, which comes with this project"
    return (
        f"{name}, which `train` loads from the Hugging Face hub unless text.model names a folder "
        "that contains it (documentation: language-models.md)"
    )


def _list(args: argparse.Namespace, console: Console) -> None:
    from manifests.summary import print_cards

    print_cards([Card.builtin(name) for name in builtin_names()], console)


def _show(args: argparse.Namespace, console: Console) -> None:
    manifest = _load(args.name)
    from manifests.summary import print_rows, print_summary

    print_summary(manifest, console)
    print_rows(manifest, args.n, console)
    console.print(f"digest {manifest.digest}", highlight=False)


def _check(args: argparse.Namespace, console: Console) -> None:
    manifest = _load(args.name)
    manifest.check()
    console.print(f"{manifest.path}: {len(manifest.table)} rows, no faults", highlight=False)


def _load(name: str) -> Manifest:
    find_manifest(name)
    from manifests.manifest import Manifest

    return Manifest.load(name)


def main(arguments: list[str] | None = None, prog: str = "python -m manifests") -> int:
    """Run one command and return its exit status: 0, or 1 on a user's error.

    argparse exits with 2 on bad usage.
    """
    args = build_parser(prog).parse_args(arguments)
    from manifests.console import Console

    try:
        args.run(args, Console())
    except (ValueError, OSError) as error:
        say(f"error: {error}", error=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
