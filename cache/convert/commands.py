"""``python -m cache export`` and ``import``: to and from the files that other programs use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from cache.convert import export, import_features
from cache.convert.layouts import ExternalFeatures
from cache.reader import FeatureStore
from cache.share.commands import plain
from cache.store.disk import atomic_write
from cache.store.recipe import DTYPES, MODALITIES


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``export`` and ``import``."""
    out = commands.add_parser("export", help="write a store as h5, npz or MMSA's pickle")
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

    into = commands.add_parser("import", help="publish features from another program as a store")
    into.add_argument("file", type=Path, help="the file to read")
    into.add_argument(
        "--from",
        dest="form",
        required=True,
        choices=import_features.IMPORT_FORMATS,
        help="the file's format",
    )
    into.add_argument("--dataset", help="the dataset (default: what the file says)")
    into.add_argument("--name", help="what the features are called (default: the file's name)")
    into.add_argument(
        "--root", type=Path, default=Path("stores"), help="folder of the stores (default: stores)"
    )
    into.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")
    into.add_argument(
        "--non-finite",
        choices=import_features.NON_FINITE,
        default="refuse",
        help="NaN and infinity: refuse them (default) or put zero in their place",
    )
    into.add_argument(
        "--modality", choices=MODALITIES, help="for csv without a column 'modality': whose rows"
    )
    into.add_argument(
        "--no-text", dest="text", action="store_false", help="leave the file's text features out"
    )
    into.add_argument("--licence", default="", help="what one may do with the features")
    into.add_argument(
        "--manifest-out",
        type=Path,
        metavar="FILE.parquet",
        help="for mmsa: also write ids, splits, transcripts and labels as a manifest's table",
    )
    into.set_defaults(run=_import)


def _export(options: argparse.Namespace) -> int:
    with _progress("exporting") as on_block:
        notes = export.export(options.store, options.to, options.out, options.manifest, on_block)
    _say(notes)
    print(f"wrote {plain(str(options.out))}")
    return 0


def _import(options: argparse.Namespace) -> int:
    with _progress("importing") as on_block:
        source = import_features.read(options.file, options.form, options.modality, options.text)
        if options.manifest_out is not None:
            _check_table(source, options.manifest_out)
        store = import_features.import_source(
            source,
            options.form,
            options.root,
            dataset=options.dataset,
            name=options.name,
            dtype=options.dtype,
            non_finite=options.non_finite,
            licence=options.licence,
            modality=options.modality,
            on_block=on_block,
        )
        if options.manifest_out is not None and source.table is not None:
            _write_table(source.table, options.manifest_out)
    _say(source.notes)
    cache = FeatureStore.open(store)
    widths = ", ".join(f"{m} {width}" for m, width in cache.widths.items())
    print(f"published {plain(str(store))}: {cache.counts['utterances']} utterances, {widths}")
    return 0


def _check_table(source: ExternalFeatures, path: Path) -> None:
    """Everything that can be wrong with the wish for a manifest, before the work is done."""
    if source.table is None:
        raise ValueError(f"{source.path} has no splits or labels: --manifest-out is for mmsa")
    if "label" not in source.table:
        raise ValueError(f"{source.path}: neither regression_labels nor classification_labels")
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: --manifest-out names a file that ends in .parquet")
    if path.exists():
        raise ValueError(f"{path} exists; remove it or name another file")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, table.to_parquet(None, engine="pyarrow", index=False))
    print(f"wrote {plain(str(path))}: put a card.yaml beside it (documentation: convert.md)")


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
