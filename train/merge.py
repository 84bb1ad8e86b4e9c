"""Merge layers of configuration keys; wrong keys and values are reported in plain words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Keys = TypeVar("Keys")

WANTED = {"Integer": "a whole number", "Float": "a number"}
"""OmegaConf's type names, in words."""


def merge_keys(kind: type[Keys], layers: Sequence[Any], owner: str, prefix: str = "") -> Keys:
    """Merge mappings over the defaults of a dataclass; later layers win.

    Args:
        kind: the dataclass that declares the keys.
        layers: mappings with any of its keys.
        owner: what has the keys, for the message about an unknown one.
        prefix: of the keys in messages, ``options.`` for instance.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    defaults = OmegaConf.structured(kind)
    try:
        return cast(Keys, OmegaConf.to_object(OmegaConf.merge(defaults, *layers)))
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        if "not in" not in str(error):
            raise ValueError(f"key {prefix + key!r} {_refused(error)}") from error
        group = key.rpartition(".")[0]
        known = ", ".join(OmegaConf.select(defaults, group) if group else defaults) or "none"
        owner = f"the group {group!r}" if group else owner
        raise ValueError(f"unknown key {prefix + key!r}; {owner} has: {known}") from error


def read_overrides(overrides: Sequence[str]) -> Any:
    """Parse ``key=value`` strings to an unchecked OmegaConf mapping; ValueError if malformed."""
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is not of the form key=value")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # OmegaConf lets YAML's own errors through
        raise ValueError(f"cannot read {' '.join(overrides)!r}: {_first_line(error)}") from error


def _refused(error: BaseException) -> str:
    """Describe why a key's value was refused; follows the key in a message."""
    line = _first_line(error)
    found = re.search(r"Value '(.*)' .*could not be converted to (\w+)$", line)
    if found is None or found[2] not in WANTED:
        return f"has an invalid value: {line}"
    return f"must be {WANTED[found[2]]}, not {found[1]}"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]
