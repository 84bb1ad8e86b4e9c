"""One store of a share, as the catalogue describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from cache.store.checksums import Checksums
from cache.store.metadata import is_count, is_sha256, segments_of
from cache.store.recipe import NAMES_ONLY, Recipe, check_place


@dataclass(frozen=True)
class Entry:
    """One store of a share.

    Attributes:
        dataset: name of the dataset.
        name: the store's folder, ``<encoder>-<sampling>-<digest12>.zarr``.
        encoder: the frozen encoder.
        sampling: settings of the frame and window sampling.
        digest: of the recipe, 64 hex digits.
        content: SHA-256 of ``checksums.json``, 64 hex digits.
        bytes: size of all files.
        files: number of files without ``checksums.json``.
        utterances: number of utterances in the store.
        failures: number of utterances without features.
        who: user name of the person who pushed it (in a share without catalogue: extracted it).
        when: time of the push, ISO 8601 in UTC; empty if unknown.
        licence: the dataset's licence note.
        features: digest of the encoders; empty if unknown.
        segments: digest of the segments by name; empty if unknown.
    """

    dataset: str
    name: str
    encoder: str
    sampling: dict[str, Any]
    digest: str
    content: str
    bytes: int
    files: int
    utterances: int
    failures: int
    who: str
    when: str
    licence: str
    features: str = ""
    segments: str = ""

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any], checksums: Checksums) -> Entry:
        """Make the entry of a store from its root attributes; ``when`` is empty."""
        recipe, counts = Recipe.of_store(attributes), attributes["counts"]
        return cls(
            dataset=recipe.dataset,
            name=name,
            encoder=recipe.encoder,
            sampling=recipe.sampling,
            digest=attributes["digest"],
            content=checksums.content,
            bytes=checksums.size,
            files=len(checksums.files),
            utterances=counts["utterances"],
            failures=counts["failed"],
            who=str(attributes.get("creator", "")),
            when="",
            licence=str(attributes.get("licence", "")),
            features=recipe.features_digest if recipe.version != NAMES_ONLY else "",
            segments=segments_of(attributes) or "",
        )

    @classmethod
    def from_json(cls, plain: Any) -> Entry:
        """Validate an entry; unknown keys (of later releases) are ignored.

        Raises:
            ValueError: a key is missing or has another type, a name cannot be a folder's, or the
                name does not end with the digest's first digits.
        """
        kinds = {"str": str, "int": int, "dict[str, Any]": dict}
        values: dict[str, Any] = {}
        for field in fields(cls):
            try:
                value = plain[field.name]
            except (KeyError, TypeError) as error:
                if isinstance(plain, dict) and field.default is not MISSING:
                    continue
                raise ValueError(f"not a catalogue entry: {error!r}") from error
            kind = kinds[str(field.type)]
            if not isinstance(value, kind) or (kind is int and not is_count(value)):
                raise ValueError(f"{field.name} is {value!r:.200}")
            if isinstance(value, str):
                value.encode()  # raises ValueError for a lone surrogate, which cannot be printed
            values[field.name] = value
        for name in ("digest", "content"):
            if not is_sha256(values[name]):
                raise ValueError(f"{name} is {values[name]!r:.200}")
        check_place(values["dataset"], values["name"])
        if not values["name"].endswith(ending_of(values["digest"])):
            raise ValueError(f"{values['name']} is not the name of a store {values['digest']}")
        return cls(**values)

    @property
    def path(self) -> str:
        """Path of the store, relative to the share."""
        return f"{self.dataset}/{self.name}"


def ending_of(digest: str) -> str:
    """How the name of a store with this digest ends."""
    return f"-{digest[:12]}.zarr"
