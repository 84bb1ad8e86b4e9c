"""Ranges of configuration keys, declared at the field: ``layers: Positive[int] = 2``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The valid values of a field.

    Attributes:
        rule: a description of the values, the end of an error message.
        allows: whether a value is valid; False for NaN.
    """

    rule: str
    allows: Callable[[Any], bool]


def one_of(*words: str) -> Range:
    """Return the range of some words."""
    return Range(f"use one of {', '.join(words)}", words.__contains__)


Positive = Annotated[T, Range("it must be above 0", lambda x: x > 0)]
NotNegative = Annotated[T, Range("it must be 0 or above", lambda x: x >= 0)]
Fraction = Annotated[T, Range("it must be 0 or above, and below 1", lambda x: 0 <= x < 1)]
Increasing = Annotated[T, Range("the borders must increase", lambda x: x == sorted(set(x)))]


def check_ranges(group: Any, prefix: str = "") -> None:
    """Check every field of a dataclass and of the dataclasses in it; None is always allowed.

    Args:
        group: the dataclass.
        prefix: precedes a field's name in the message.

    Raises:
        ValueError: a field has an invalid value; names the first such field.
    """
    for name, hint in get_type_hints(type(group), include_extras=True).items():
        value = getattr(group, name)
        if is_dataclass(value):
            check_ranges(value, f"{prefix}{name}.")
        elif value is not None:
            for each in getattr(hint, "__metadata__", ()):
                if not each.allows(value):
                    raise ValueError(f"key '{prefix}{name}' is {value!r}: {each.rule}")
