"""The commands on the videos that stores were made from: ``upgrade`` and ``sources``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cache.command_line import check_exists, progress_bar
from manifests.command_line import add_command, print_note
from manifests.printing import preview, say

if TYPE_CHECKING:
    from cache.reader import FeatureStore
    from cache.upgrade import Cuts
    from manifests.command_line import SubParsers


def add_commands(commands: SubParsers) -> None:
    """Register ``upgrade`` and ``sources``."""
    up = add_command(
        commands,
        "upgrade",
        _upgrade,
        "record the contents of the videos in stores of format version 1",
        [
            "stores/meld/NAME.zarr --data /data/MELD.Raw",
            "/nfs/lab/features --data meld=/data/MELD.Raw --data mosi=/data/mosi",
        ],
        "Write a new store that names the contents of today's videos next to one of format version "
        "1, which names their paths only. The features are copied, nothing is decoded. The new "
        "store is marked `asserted`, since nothing proves that its features came from these files. "
        "For a share, every such store is pulled, upgraded and pushed; the old ones stay, and "
        "readers are not disturbed.",
    )
    up.add_argument("store", help="a published store, NAME.zarr, or a share (folder or URL)")
    up.add_argument(
        "--data",
        required=True,
        action="append",
        metavar="[DATASET=]FOLDER",
        help="folder of the videos; for the datasets of a share, may be repeated",
    )
    _add_manifest(up)

    sources = add_command(
        commands,
        "sources",
        _sources,
        "compare local videos with those that a store was made from",
        ["stores/meld/NAME.zarr --data /data/MELD.Raw", "s3://lab/features/0123456789ab"],
        "Compare local videos, by their SHA-256, with those that a store was made from. For a "
        "store at a URL, all files except the features are downloaded.",
        status="Exit status: 0 no video differs, 1 some differ, or an error.",
    )
    sources.add_argument("store", help="a published store, NAME.zarr, by path or URL")
    sources.add_argument(
        "--data", type=Path, metavar="FOLDER", help="folder of the videos (default: the manifest's)"
    )
    _add_manifest(sources)


def _add_manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--manifest",
        metavar="DATASET",
        help="the manifest with the paths of the videos: a dataset below data/ or its folder "
        "(default: the store's dataset)",
    )


def _upgrade(options: argparse.Namespace) -> int:
    check_exists(options.store)
    folders = _folders(options.data)
    from cache.store.publish import is_published

    local = Path(options.store)
    if not is_published(local):
        return _upgrade_share(options, folders)
    _upgrade_one(local, local.absolute().parent.parent, folders, options.manifest)
    return 0


def _upgrade_share(options: argparse.Namespace, folders: dict[str, Path]) -> int:
    from cache.share.mirror import mirror, mirror_folder
    from cache.share.push import push
    from cache.share.remote_store import resolve
    from cache.store.recipe import NAMES_ONLY

    failed = skipped = 0
    for shared in resolve(options.store):
        try:
            if shared.attributes(shared.published_checksums())["format_version"] != NAMES_ONLY:
                continue
            if shared.dataset not in folders and "" not in folders:
                say(f"{shared}: skipped; give its videos with --data {shared.dataset}=FOLDER")
                skipped += 1
                continue
            old = mirror(str(shared))
            new = _upgrade_one(old, mirror_folder(), folders, options.manifest)
            push(new, str(shared.share))
            say(f"{shared.share / shared.dataset / new.name}: pushed")
        except ValueError as error:
            say(f"{shared}: {error}")
            failed += 1
    say(f"{failed} stores failed, {skipped} were skipped" if failed or skipped else "upgraded")
    return 1 if failed or skipped else 0


def _upgrade_one(store: Path, stores: Path, folders: dict[str, Path], manifest: str | None) -> Path:
    from cache.reader import FeatureStore
    from cache.upgrade import upgrade

    dataset = FeatureStore.open(store).dataset
    data = folders.get(dataset, folders.get(""))
    if data is None:
        raise ValueError(f"give the videos of {dataset} with --data {dataset}=FOLDER")
    with progress_bar("hash", in_bytes=True) as on_hash:
        new, gone = upgrade(store, _cuts(manifest or dataset), data, stores, on_hash)
    if gone:
        print_note(f"the videos of {len(gone)} utterances are missing: {preview(gone)}")
    say(f"{new}: upgraded from {store}, which can be deleted once nothing uses it")
    return new


def _sources(options: argparse.Namespace) -> int:
    check_exists(options.store)
    from cache.reader import FeatureStore
    from cache.share.remote_store import locate
    from cache.share.transfer import open_remote_metadata

    found = locate(options.store)
    if isinstance(found, Path):
        return _compare(FeatureStore.open(found), options)
    with open_remote_metadata(found, found.published_checksums()) as store:
        return _compare(store, options)


def _compare(store: FeatureStore, options: argparse.Namespace) -> int:
    from cache.share.mirror import mirror_folder
    from cache.upgrade import compare_sources
    from manifests.locate import find_manifest

    manifest = options.manifest or store.dataset
    data = options.data or find_manifest(manifest).parent
    with progress_bar("hash", in_bytes=True) as on_hash:
        found = compare_sources(store, _cuts(manifest), data, mirror_folder(), on_hash)
    for ids, what in (
        (found.different, "differ from the store's"),
        (found.missing, "are missing here"),
        (found.unknown, "are not named by the store or the manifest"),
    ):
        if ids:
            text = f"the videos of {len(ids)} utterances {what}: {preview(ids, 10)}"
            say(text)
    say(f"the videos of {found.same} utterances are those of the store")
    if store.attributes.get("asserted"):
        say("the store is marked `asserted`: nothing proves that its features came from them")
    return 1 if found.different else 0


def _cuts(manifest: str) -> Cuts:
    from manifests import Manifest

    return Manifest.load(manifest).cuts


def _folders(texts: list[str]) -> dict[str, Path]:
    """Parse ``--data``: dataset to folder; the dataset is empty for a folder alone."""
    folders = {}
    for text in texts:
        dataset, separator, folder = text.partition("=")
        if not separator or Path(text).is_dir():
            dataset, folder = "", text
        if not Path(folder).is_dir():
            raise ValueError(f"--data {folder}: no such folder")
        folders[dataset] = Path(folder)
    return folders
