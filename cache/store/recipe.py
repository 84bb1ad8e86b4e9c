"""Recipe: everything that decides the values in a store, and the digest that names the store.

Two extractions with equal recipes give equal features, whatever machine they ran on. So a recipe
holds what changes a value and nothing else: no path, no host, no worker count, no batch size.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT_VERSION = 1
MODALITIES = ("audio", "vision")  # the outputs of an encoder
STORABLE = (*MODALITIES, "text")  # the modalities that a store may have
DTYPES = ("float16", "float32")
STORE_NAME = r"[^./\\][^/\\]*-[0-9.e+-]+fps-[0-9a-f]{12}\.zarr"
"""Regular expression of the names that :func:`store_name` returns."""


def canonical_json(value: Any) -> str:
    """Serialise to JSON with one spelling per value: keys sorted, no white space, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_utterances(rows: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 of the segments that are extracted from each video, independent of the order of rows.

    Args:
        rows: ``(id, video, start, end, crop)`` per utterance; ``None`` where a value is absent.
    """
    return digest_of(sorted((list(row) for row in rows), key=lambda row: str(row[0]).encode()))


def check_name(what: str, name: Any) -> None:
    """Check that a name is a valid, visible folder name on every system.

    Args:
        what: what the name is of, for the message.
        name: the name; any value is accepted.

    Raises:
        ValueError: it is not.
    """
    good = isinstance(name, str) and name and name == name.strip() and not name.startswith(".")
    if not good or any(c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise ValueError(f"{what} {name!r} cannot be part of a file name")


def check_place(dataset: Any, name: Any) -> None:
    """Check that ``<dataset>/<name>`` has the form of a store's path.

    Every name that comes from a share is checked here before a folder with that name is touched.

    Raises:
        ValueError: it does not.
    """
    check_name("dataset", dataset)
    check_name("store", name)
    if not re.fullmatch(STORE_NAME, name):
        raise ValueError(
            f"{name!r} is not the name of a store: <encoder>-<fps>fps-<12 digits>.zarr"
        )


def store_name(encoder: str, sampling: Mapping[str, Any], digest: str) -> str:
    """The name of a store's folder: ``<encoder>-<fps>fps-<digest12>.zarr``."""
    return f"{encoder}-{sampling['fps']:g}fps-{digest[:12]}.zarr"


@dataclass(frozen=True)
class Recipe:
    """The inputs and settings that decide the values in a store.

    Attributes:
        dataset: name of the dataset.
        encoder: name of the frozen encoder.
        weights: SHA-256 of the encoder's weights.
        settings: the encoder's own settings (normalisation, precision, ...), JSON-able.
        sampling: how frames and windows are taken (``fps``, ``window_s``, ...), JSON-able.
        preprocess: version of the pre-processing code; raised whenever its output changes.
        utterances: SHA-256 from :func:`digest_of_utterances`.
        dtype: stored type of the features, ``float16`` or ``float32``.
    """

    dataset: str
    encoder: str
    weights: str
    settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    preprocess: int
    utterances: str
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; a store holds {' or '.join(DTYPES)}")
        check_name("dataset", self.dataset)
        check_name("encoder", self.encoder)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        plain: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        return plain

    @property
    def digest(self) -> str:
        """SHA-256, 64 hex digits: equal for equal recipes on every machine."""
        return digest_of({"format_version": FORMAT_VERSION, **self.as_dict()})

    @property
    def store_name(self) -> str:
        """The name of the store's folder in ``<root>/<dataset>/``, see :func:`store_name`."""
        return store_name(self.encoder, self.sampling, self.digest)


def user_name() -> str:
    """The user's name, or the numeric id if the system has no name for it (as in containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        return str(os.getuid())
