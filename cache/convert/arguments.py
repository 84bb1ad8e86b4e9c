"""Check the arguments of an export or import without importing heavy packages.

So the command line reports a wrong argument at once.
"""

from __future__ import annotations

from pathlib import Path

from cache.convert import EXPORT_FORMATS, IMPORT_FORMATS
from manifests.locate import MANIFEST, folder_of


def check_export(to: str, out: Path, manifest: str | Path | None) -> None:
    """Check the arguments of :func:`cache.convert.export.export`, except the store.

    Raises:
        ValueError: an unknown format, a manifest that is missing or not needed, or an `out` that
            exists.
    """
    if to not in EXPORT_FORMATS:
        raise ValueError(f"unknown format {to!r}; use {', '.join(EXPORT_FORMATS)}")
    if to == "mmsa" and manifest is None:
        raise ValueError(
            "an mmsa file needs splits, transcripts and labels, which a store does not contain: "
            "pass --manifest DATASET"
        )
    if to != "mmsa" and manifest is not None:
        raise ValueError(f"--manifest is for mmsa; an {to} file contains what the store contains")
    if manifest is not None:
        manifest_path(manifest)
    check_new(out)


def check_import(path: Path, form: str) -> None:
    """Check the file and the format of an import.

    Raises:
        ValueError: no such file, or an unknown format.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if form not in IMPORT_FORMATS:
        raise ValueError(f"unknown format {form!r}; use {', '.join(IMPORT_FORMATS)}")


def check_new(path: Path) -> None:
    """Raise a ValueError if `path` exists: no command here replaces a file."""
    if path.exists():
        raise ValueError(f"{path} exists; remove it or name another file")


def manifest_path(dataset: str | Path) -> Path:
    """Return the table of a dataset.

    Args:
        dataset: a dataset below ``data/``, a folder with ``manifest.parquet``, or a Parquet file.

    Raises:
        ValueError: no such file.
    """
    path = Path(dataset)
    if path.suffix != ".parquet":
        path = folder_of(dataset) / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path} cannot be read as a manifest: no such file")
    return path
