"""``python -m cache export`` and ``import``: convert stores to and from other programs' files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cache.command_line import check_exists, progress_bar
from cache.convert import EXPORT_FORMATS, IMPORT_FORMATS, NON_FINITE
from cache.convert.arguments import check_export, check_import
from cache.store.recipe import DTYPES, MODALITIES
from manifests.command_line import add_command, add_stores_option, print_note
from manifests.printing import say

if TYPE_CHECKING:
    from manifests.command_line import SubParsers


def add_commands(commands: SubParsers) -> None:
    """Register ``export`` and ``import``."""
    out = add_command(
        commands,
        "export",
        _export,
        "write a store as h5, npz or MMSA's pickle",
        [
            "stores/mosi/NAME.zarr --to h5 features.h5",
            "stores/mosi/NAME.zarr --to mmsa features.pkl --manifest mosi",
        ],
    )
    out.add_argument("store", help="a published store, NAME.zarr, by path or URL")
    out.add_argument("--to", required=True, choices=EXPORT_FORMATS, help="the file's format")
    out.add_argument("out", type=Path, help="the file to write; it must not exist")
    out.add_argument(
        "--manifest",
        metavar="DATASET",
        help="for mmsa: splits, transcripts and labels; a dataset below data/, a manifest's "
        "folder, or a Parquet file",
    )

    into = add_command(
        commands,
        "import",
        _import,
        "publish features from another program as a store",
        [
            "features.h5 --from h5 --stores /data/stores",
            "unaligned_50.pkl --from mmsa --dataset mine --manifest-out data/mine",
        ],
    )
    into.add_argument("file", type=Path, help="the file to read")
    into.add_argument(
        "--from",
        dest="form",
        required=True,
        choices=IMPORT_FORMATS,
        help="the file's format",
    )
    into.add_argument("--dataset", help="the dataset's name (default: the file's own)")
    into.add_argument("--name", help="name of the features (default: the file's name)")
    add_stores_option(into, former="--root")
    into.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")
    into.add_argument(
        "--non-finite",
        choices=NON_FINITE,
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


def _export(options: argparse.Namespace) -> int:
    check_exists(options.store)
    check_export(options.to, options.out, options.manifest)
    from cache.convert.export import export

    with progress_bar("export") as on_block:
        notes = export(options.store, options.to, options.out, options.manifest, on_block)
    for note in notes:
        print_note(note)
    say(f"wrote {options.out}")
    return 0


def _import(options: argparse.Namespace) -> int:
    check_import(options.file, options.form)
    from cache.convert.dataset import dataset_of
    from cache.convert.import_features import import_source, read
    from cache.reader import FeatureStore

    dataset = None
    with progress_bar("import") as on_block:
        source = read(options.file, options.form, options.modality, options.text)
        if options.manifest_out is not None:
            name = options.dataset or source.dataset or ""  # the import refuses an empty name
            dataset = dataset_of(source, name, options.manifest_out, options.licence)
        store = import_source(
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
    for note in source.notes + (dataset.notes if dataset is not None else []):
        print_note(note)
    if dataset is not None:
        say(f"wrote {dataset.table}")
    published = FeatureStore.open(store)
    widths = ", ".join(f"{m} {width}" for m, width in published.widths.items())
    utterances = published.counts["utterances"]
    say(f"published {store}: {utterances} utterances, {widths}")
    return 0
