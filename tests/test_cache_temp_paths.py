"""Names of temporary files and folders: they are the documented ones, and are recognised."""

import re
from pathlib import Path

import pytest

from cache.store.temp_paths import TempPath, recognise
from tests.stores import RECIPE

NAME = RECIPE.store_name
DOCUMENTED = {
    TempPath.PARTS: f"{NAME}.parts",
    TempPath.RETRY_PARTS: f"{NAME}.retry.parts",
    TempPath.REPLACED: f".{NAME}.aside",
    TempPath.PARTIAL: f"{NAME}.partial",
    TempPath.UNLOCKED_PARTIAL: f".{NAME}.RANDOM.partial",
    TempPath.PULL_LOCK: f".{NAME}.lock",
    TempPath.FILE: f".{NAME}.RANDOM",
    TempPath.DELETED: f".{NAME}.gone-RANDOM",
    TempPath.PUSHING: f"{NAME}.pushing",
}


@pytest.mark.parametrize("kind", TempPath, ids=lambda kind: kind.name)
def test_a_path_has_the_documented_name_and_is_recognised(kind):
    path = kind.next_to(Path("stores", "toy", NAME))
    assert path.parent == Path("stores", "toy")
    assert re.sub("[0-9a-f]{32}", "RANDOM", path.name) == DOCUMENTED[kind]
    assert recognise(path.name) == (kind, NAME)


@pytest.mark.parametrize("kind", TempPath, ids=lambda kind: kind.name)
def test_a_temporary_path_of_a_temporary_path_belongs_to_the_store(kind):
    assert recognise(TempPath.FILE.name_for(kind.name_for(NAME))) == (TempPath.FILE, NAME)


@pytest.mark.parametrize("name", [NAME, f".{NAME}", f".{NAME}.notes", "thesis.zarr.parts", ".git"])
def test_other_names_are_not_recognised(name):
    assert recognise(name) is None
