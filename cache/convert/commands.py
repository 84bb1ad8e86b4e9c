"""``python -m cache export`` and ``import``: convert stores to and from other programs' files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from cache.convert import export, import_features
from cache.reader import FeatureStore
from cache.share.commands import plain
from cache.store.recipe import DTYPES, MODALITIES

EXPORT_EPILOG = """\
examples:
  %(prog)s stores/mosi/NAME.zarr --to h5 features.h5
  %(prog)s stores/mosi/NAME.zarr --to mmsa features.pkl --manifest mosi
"""
IMPORT_EPILOG = """\
examples:
  %(prog)s features.h5 --from h5 --stores /data/stores
  %(prog)s unaligned_50.pkl --from mmsa --dataset mine --manifest-out data/mine
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``export`` and ``import``."""
    examples: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    about = "Write a store as h5, npz or MMSA's pickle"
    out = commands.add_parser(
        "export",
        help=about[0].lower() + about[1:],
        description=f"{about}.",
        epilog=EXPORT_EPILOG,
        **examples,
    )
    out.add_argument("store", type=Path, help="a published store, <name>.zarr")
    out.add_argument("--to", required=True, choices=export.EXPORT_FORMATS, help="the file's format")
    out.add_argument("out", type=Path, help="the file to write; it must not exist")
    out.add_argument(
        "--manifest",
        metavar="DATASET",
        help="for mmsa: splits, transcripts and labels; a dataset below data/, a manifest's "
        "folder, or a Parquet file",
    )
    out.set_defaults(run=_export)

    about = "Publish features from another program as a store"
    into = commands.add_parser(
        "import",
        help=about[0].lower() + about[1:],
        description=f"{about}.",
        epilog=IMPORT_EPILOG,
        **examples,
    )
    into.add_argument("file", type=Path, help="the file to read")
    into.add_argument(
        "--from",
        dest="form",
        required=True,
        choices=import_features.IMPORT_FORMATS,
        help="the file's format",
    )
    into.add_argument("--dataset", help="the dataset's name (default: the file's own)")
    into.add_argument("--name", help="name of the features (default: the file's name)")
    into.add_argument(
        "--stores",
        type=Path,
        metavar="FOLDER",
        default=Path("stores"),
        help="folder of the stores (default: stores)",
    )
    # The name of --stores in release 0.1.
    into.add_argument("--root", dest="stores", action=_Renamed, type=Path, help=argparse.SUPPRESS)
    into.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")
    into.add_argument(
        "--non-finite",
        choices=import_features.NON_FINITE,
        default="refuse",
        help="NaN and infinity: refuse them (default) or replace them by zero",
    )
    into.add_argument(
        "--modality", choices=MODALITIES, help="for csv without a column 'modality': of all rows"
    )
    into.add_argument(
        "--no-text", dest="text", action="store_false", help="ignore the file's text features"
    )
    into.add_argument("--licence", default="", help="licence of the features")
    into.add_argument(
        "--manifest-out",
        type=Path,
        metavar="FOLDER",
        help="for mmsa: also write the dataset, manifest.parquet (ids, splits, transcripts, "
        "labels) and card.yaml; a FILE.parquet names the table",
    )
    into.set_defaults(run=_import)


class _Renamed(argparse.Action):
    """An option's old name: it still works, with a note."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        print(f"note: {option} is called --{self.dest} now", file=sys.stderr)
        setattr(namespace, self.dest, values)


def _export(options: argparse.Namespace) -> int:
    with _progress("exporting") as on_block:
        notes = export.export(options.store, options.to, options.out, options.manifest, on_block)
    _print_notes(notes)
    print(f"wrote {plain(str(options.out))}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from cache.convert.dataset import dataset_of  # takes the manifests' time to load

    dataset = None
    with _progress("importing") as on_block:
        source = import_features.read(options.file, options.form, options.modality, options.text)
        if options.manifest_out is not None:
            name = options.dataset or source.dataset or ""  # the import refuses an empty one
            dataset = dataset_of(source, name, options.manifest_out, options.licence)
        store = import_features.import_source(
            source,
            options.form,
            options.stores,
            dataset=options.dataset,
            name=options.name,
            dtype=options.dtype,
            non_finite=options.non_finite,
            licence=options.licence,
            modality=options.modality,
            on_block=on_block,
        )
        if dataset is not None:
            dataset.write()
    _print_notes(source.notes)
    if dataset is not None:
        _print_notes(dataset.notes)
        print(f"wrote {plain(str(dataset.table))}")
    cache = FeatureStore.open(store)
    widths = ", ".join(f"{m} {width}" for m, width in cache.widths.items())
    print(f"published {plain(str(store))}: {cache.counts['utterances']} utterances, {widths}")
    return 0


def _print_notes(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {plain(note)}", file=sys.stderr)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
