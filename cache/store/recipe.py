"""What a store was made from, and the digest that names it.

Two extractions with equal recipes give equal features, wherever and however they ran. So a recipe
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
MODALITIES = ("audio", "vision")  # what an encoder gives
STORABLE = (*MODALITIES, "text")  # what a store may hold
DTYPES = ("float16", "float32")
STORE_NAME = r"[^./\\][^/\\]*-[0-9.e+-]+fps-[0-9a-f]{12}\.zarr"
"""What :func:`store_name` gives, as a regular expression."""


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value: keys sorted, no white space, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(value: Any) -> str:
    """SHA-256 (64 hex digits) of a JSON-able value's canonical spelling."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_utterances(rows: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 of what is cut out of which video, whatever the order of the rows.

    Args:
        rows: ``(id, video, start, end, crop)`` per utterance; ``None`` where a value is absent.
    """
    return digest_of(sorted((list(row) for row in rows), key=lambda row: str(row[0]).encode()))


def check_name(what: str, name: Any) -> None:
    """Refuse a name that no folder can have on every system, or that would be a hidden one.

    Raises:
        ValueError: it is such a name, or no string.
    """
    good = isinstance(name, str) and name and name == name.strip() and not name.startswith(".")
    if not good or any(c in '/\\:*?"<>|' or unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise ValueError(f"{what} {name!r} cannot be part of a file name")


def check_place(dataset: Any, name: Any) -> None:
    """Refuse what is not called ``<dataset>/<store name>`` as a recipe calls its store.

    Whatever names a store from elsewhere comes by here before a folder of that name is touched.

    Raises:
        ValueError: it is not.
    """
    check_name("dataset", dataset)
    check_name("store", name)
    if not re.fullmatch(STORE_NAME, name):
        raise ValueError(
            f"{name!r} is no name of a store; one is called <encoder>-<fps>fps-<12 digits>.zarr"
        )


def store_name(encoder: str, sampling: Mapping[str, Any], digest: str) -> str:
    """``<encoder>-<sampling>-<digest12>.zarr``."""
    return f"{encoder}-{sampling['fps']:g}fps-{digest[:12]}.zarr"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the values in a store.

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
        """64 hex digits: equal for equal recipes on every machine."""
        return digest_of({"format_version": FORMAT_VERSION, **self.as_dict()})

    @property
    def store_name(self) -> str:
        """``<encoder>-<sampling>-<digest12>.zarr``, a folder below ``<root>/<dataset>/``."""
        return store_name(self.encoder, self.sampling, self.digest)


def user_name() -> str:
    """The user's name; their numeric id where the system has no name, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        return str(os.getuid())
