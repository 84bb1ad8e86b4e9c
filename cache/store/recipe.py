"""Recipe: everything that decides the values in a store, and the digest that names the store.

Two extractions with equal recipes give equal features, whatever machine they ran on. So a recipe
holds what changes a value and nothing else: no file name, no host, no worker count, no batch size.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

FORMAT_VERSION = 2
NAMES_ONLY = 1
"""The format version whose digest depends on the names of the videos instead of their contents."""
MODALITIES = ("audio", "vision")  # the outputs of an encoder
STORABLE = (*MODALITIES, "text")  # the modalities that a store may have
DTYPES = ("float16", "float32")
_AUDIO_SAMPLING = ("window_s", "channel")
_VISION_SAMPLING = ("vision", "crops", "crop_rows")
_LONGEST_NAME = 255  # bytes
_LONGEST_SUFFIX = len(f"..{'0' * 32}.partial")  # of a temporary path
_RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
_RESERVED |= {f"{device}{number}" for device in ("COM", "LPT") for number in "0123456789¹²³"}
STORE_NAME = r"[^./\\][^/\\]*-[0-9.e+-]+fps-[0-9a-f]{12}\.zarr"
"""Regular expression of the names that :attr:`Recipe.store_name` has."""


_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: Any) -> str:
    """Serialise to JSON with one spelling per value: keys sorted, no white space, no NaN."""
    return _CANONICAL.encode(value)


def digest_of(value: Any) -> str:
    """SHA-256 (64 hex digits) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_segments(rows: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 of the segments that are extracted from each video, by the videos' names.

    Args:
        rows: ``(id, video, start, end, crop)`` per utterance, in any order; ``None`` where a value
            is absent.
    """
    return digest_of(sorted((list(row) for row in rows), key=lambda row: str(row[0]).encode()))


def digest_of_sources(rows: Iterable[tuple[Any, ...]]) -> str:
    """SHA-256 of the segments that are extracted from each video, by the videos' contents.

    Args:
        rows: ``(id, SHA-256 of the file, start, end, crop)`` per utterance, in any order; ``None``
            where a value is absent.
    """
    total = hashlib.sha256()
    for row in sorted(rows, key=lambda row: str(row[0]).encode()):
        total.update(canonical_json(list(row)).encode() + b"\n")
    return total.hexdigest()


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


def check_portable(dataset: str, name: str) -> None:
    """Check that a store with these names can be copied to any system.

    Only new stores and copies are held to this: others with such names can be read.

    Args:
        dataset: name of the dataset, a folder.
        name: name of the store's folder in it.

    Raises:
        ValueError: a name is reserved on Windows, has invisible characters or a dot at its end, or
            is too long.
    """
    for what, part, longest in (
        ("dataset", dataset, _LONGEST_NAME),
        ("store", name, _LONGEST_NAME - _LONGEST_SUFFIX),
    ):
        size = max(len(unicodedata.normalize(form, part).encode()) for form in ("NFC", "NFD"))
        reason = ""
        if part.partition(".")[0].rstrip().upper() in _RESERVED:
            reason = "is a reserved name on Windows"
        elif not part.isprintable():
            reason = "has a character that cannot be seen, such as a mark of direction"
        elif part.endswith("."):
            reason = "ends with a dot, which Windows drops"
        elif size > longest:
            reason = f"has {size} bytes; {longest} are the most that fit into a file name"
        if reason:
            remedy = "rename it in its card" if what == "dataset" else "import it with --name"
            raise ValueError(
                f"the {what} {part!r} {reason}: not every machine could pull it; {remedy}"
            )


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


@dataclass(frozen=True)
class EncoderRecipe:
    """Everything except the sources that decides the values of one modality.

    Attributes:
        encoder: name of the frozen encoder.
        weights: SHA-256 of the encoder's weights.
        settings: the encoder's own settings (normalisation, precision, ...), JSON-able.
        sampling: how its frames or windows are taken (``fps``, ``window_s``, ...), JSON-able.
        preprocess: version of the pre-processing code; raised whenever its output changes.
        dtype: stored type of the features, ``float16`` or ``float32``.
    """

    encoder: str
    weights: str
    settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    preprocess: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; a store holds {' or '.join(DTYPES)}")
        check_name("encoder", self.encoder)


@dataclass(frozen=True)
class Recipe:
    """The inputs and settings that decide the values in a store.

    Attributes:
        dataset: name of the dataset; it places the store and is not part of the digest.
        encoders: the recipe of each modality.
        utterances: SHA-256 from :func:`digest_of_sources`; empty if it is not known yet. With
            ``version`` 1, from :func:`digest_of_segments`.
        version: format version of the store.
    """

    dataset: str
    encoders: Mapping[str, EncoderRecipe]
    utterances: str = ""
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_name("dataset", self.dataset)
        if len({entry.dtype for entry in self.encoders.values()}) != 1:
            raise ValueError("a store has features of one stored type")

    @classmethod
    def with_one_encoder(
        cls,
        dataset: str,
        encoder: str,
        weights: str,
        settings: Mapping[str, Any],
        sampling: Mapping[str, Any],
        preprocess: int,
        utterances: str = "",
        dtype: str = "float16",
        version: int = FORMAT_VERSION,
    ) -> Self:
        """The recipe of a store whose audio and vision are of one encoder.

        Args:
            dataset: as in :class:`Recipe`.
            encoder: as in :class:`EncoderRecipe`.
            weights: as there.
            settings: as there.
            sampling: of both modalities together; each gets the settings that concern it.
            preprocess: as in :class:`EncoderRecipe`.
            utterances: as in :class:`Recipe`.
            dtype: as in :class:`EncoderRecipe`.
            version: as in :class:`Recipe`.
        """
        encoders = {
            m: EncoderRecipe(
                encoder, weights, settings, _sampling_of(m, sampling), preprocess, dtype
            )
            for m in MODALITIES
        }
        return cls(dataset, encoders, utterances, version)

    @classmethod
    def of_store(cls, attributes: Mapping[str, Any]) -> Self:
        """The recipe in a store's root attributes, of any format version.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not a recipe.
        """
        recipe, version = attributes["recipe"], attributes["format_version"]
        if version == NAMES_ONLY:
            return cls.with_one_encoder(**recipe, version=version)
        names = [field.name for field in fields(EncoderRecipe)]
        encoders = {
            m: EncoderRecipe(**{name: entry[name] for name in names})
            for m, entry in recipe.items()
            if m != "utterances"
        }
        if not encoders.keys() <= set(MODALITIES) or not encoders:
            raise ValueError(f"a recipe of {', '.join(encoders) or 'no modality'}")
        return cls(attributes["dataset"], encoders, recipe["utterances"], version)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values, as in the root attributes of a store."""
        entries: dict[str, Any] = {m: asdict(entry) for m, entry in self.encoders.items()}
        if self.version == NAMES_ONLY:  # one encoder, and the sampling of both modalities
            entries = {"dataset": self.dataset, **entries[MODALITIES[0]], "sampling": self.sampling}
        plain: dict[str, Any] = json.loads(
            canonical_json({**entries, "utterances": self.utterances})
        )
        return plain

    @property
    def digest(self) -> str:
        """SHA-256, 64 hex digits: equal for equal recipes on every machine."""
        return digest_of({"format_version": self.version, **self.as_dict()})

    @property
    def features_digest(self) -> str:
        """SHA-256 of the encoders alone: rows of stores that share it can be joined."""
        return digest_of({m: asdict(entry) for m, entry in self.encoders.items()})

    @property
    def has_one_encoder(self) -> bool:
        """Whether the modalities differ in their sampling only."""
        plain = (asdict(replace(entry, sampling={})) for entry in self.encoders.values())
        return len({canonical_json(entry) for entry in plain}) == 1

    @property
    def encoder(self) -> str:
        """Names of the encoders; one name if all modalities have the same."""
        return "+".join(dict.fromkeys(entry.encoder for entry in self.encoders.values()))

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling of all modalities together."""
        return {k: v for entry in self.encoders.values() for k, v in entry.sampling.items()}

    @property
    def dtype(self) -> str:
        """The stored type of all modalities."""
        return next(iter(self.encoders.values())).dtype

    @property
    def store_name(self) -> str:
        """The name of the store's folder in ``<root>/<dataset>/``."""
        return self.name_with(self.digest)

    def name_with(self, digest: str) -> str:
        """A name in the form of a store's: ``<encoder>-<fps>fps-<digest12>.zarr``."""
        return f"{self.encoder}-{self.sampling['fps']:g}fps-{digest[:12]}.zarr"


def _sampling_of(modality: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in ``sampling`` that decide values of a modality."""
    others = {"audio": _VISION_SAMPLING, "vision": _AUDIO_SAMPLING}[modality]
    return {key: value for key, value in sampling.items() if key not in others}


def user_name() -> str:
    """The user's name, or the numeric id if the system has no name for it (as in containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        return str(os.getuid())
