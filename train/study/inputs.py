"""Read the arguments of the study commands, before anything slow is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def find_predictions(run: Path) -> Path:
    """Return the path of a finished run's ``predictions.parquet``.

    Raises:
        ValueError: no such file.
    """
    path = run / "predictions.parquet"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; not the folder of a finished run")
    return path


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse ``1,4,7`` as these seeds, and a single number ``3`` as the seeds 1 to 3.

    Raises:
        ValueError: another format, or equal seeds.
    """
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"seeds={text}: use a count or a list, such as 3 or 1,2,3") from error
    if len(numbers) == 1 and numbers[0] > 0:
        return tuple(range(1, numbers[0] + 1))
    if len(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds={text}: use a count or a list of different seeds")
    return numbers


def pop_key(overrides: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """Return the value of ``key=value`` (None: absent) and the remaining overrides."""
    found = [word for word in overrides if word.startswith(f"{key}=")]
    others = [word for word in overrides if not word.startswith(f"{key}=")]
    return (found[-1].partition("=")[2] if found else None), others


def select_names(names: str | None, known: Sequence[str], kind: str, always: str) -> list[str]:
    """Parse a comma-separated list of names; None or "all" selects all.

    Args:
        names: the list.
        known: all names, in the order of the result.
        kind: "method" or "ablation", for the error.
        always: a name that is always selected: the others are tested against it.

    Raises:
        ValueError: a name is unknown.
    """
    selected = set(known) if names in (None, "all") else {always, *str(names).split(",")}
    unknown = selected - set(known)
    if unknown:
        raise ValueError(f"unknown {kind} {min(unknown)!r}; choose from all, {', '.join(known)}")
    return [name for name in known if name in selected]


def check_no_single_run_keys(overrides: Sequence[str]) -> None:
    """Raise a ValueError on ``seed=`` and ``name=``, which are for single runs."""
    for key in ("seed", "name"):
        if pop_key(overrides, key)[0] is not None:
            raise ValueError(f"{key}= is for one run; for several use seeds=COUNT or seeds=1,2,3")
