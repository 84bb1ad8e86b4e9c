"""Garbage collection in a mirror: only our own temporary files and stores are deleted."""

import os
import time
from pathlib import Path

import pytest

from cache.__main__ import main
from cache.share.gc import delete_garbage, find_garbage
from cache.store.publish import is_published
from tests.stores import RECIPE, build_store, recipe_of, tree_of

NAME = RECIPE.store_name
HEX = "0123456789abcdef" * 2


def long_ago(path: Path) -> Path:
    """Five days."""
    for found in [*path.rglob("*"), path]:
        os.utime(found, (time.time() - 5 * 86400,) * 2)
    return path


def folder_at(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"123")
    return long_ago(path)


def file_at(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"123")
    return long_ago(path)


@pytest.mark.parametrize(
    "name",
    [
        ".git",
        ".config",
        "thesis.partial",
        ".thesis.zarr.lock",
        "thesis.zarr.partial",
        f"{NAME}.parts",
        f".{NAME}.notes",
        f".{NAME}.gone-thesis",
        f".{NAME}.{HEX}.old",
        f"..{NAME}.lock",
    ],
)
def test_what_is_not_ours_by_its_name_is_never_listed(tmp_path, name):
    folder_at(tmp_path / "thesis" / name)
    assert find_garbage(tmp_path, older_than_days=0, larger_than=0) == []


def test_a_foreign_store_is_never_listed(tmp_path):
    file_at(tmp_path / "thesis" / "mine.zarr" / "checksums.json")
    assert find_garbage(tmp_path, older_than_days=0, larger_than=0) == []


@pytest.mark.parametrize("level", ["dataset", "store"])
def test_what_lies_behind_a_link_is_never_listed(tmp_path, level):
    store = long_ago(build_store(tmp_path / "share"))
    before, mirror = tree_of(store), tmp_path / "mirror"
    (mirror / "toy").parent.mkdir()
    if level == "dataset":
        (mirror / "toy").symlink_to(store.parent)
    else:
        (mirror / "toy").mkdir()
        (mirror / "toy" / NAME).symlink_to(store)
    assert main(["gc", "--mirror", str(mirror), "--older-than=0", "--larger-than=0", "--yes"]) == 0
    assert tree_of(store) == before
    assert is_published(mirror / "toy" / NAME)


def test_files_of_other_programs_are_kept(tmp_path):
    theirs = file_at(tmp_path / "thesis" / ".mine.zarr.aside" / "checksums.json")
    assert find_garbage(tmp_path, older_than_days=0, larger_than=0) == []
    assert theirs.is_file()


def test_our_own_remains_are_listed_and_deleted(tmp_path):
    toy = tmp_path / "toy"
    remains = [
        folder_at(toy / f"{NAME}.partial"),
        folder_at(toy / f".{NAME}.{HEX}.partial"),
        folder_at(toy / f".{NAME}.gone-{HEX}"),
        file_at(toy / f".{NAME}.{HEX}"),
        file_at(toy / f".{NAME}.lock"),
    ]
    found = find_garbage(tmp_path)
    assert sorted(item.path for item in found) == sorted(remains)
    for item in found:
        delete_garbage(item)
    assert list(toy.iterdir()) == []


def test_a_link_among_the_remains_goes_alone(tmp_path):
    notes = folder_at(tmp_path / "notes" / "deep")
    (tmp_path / "toy").mkdir()
    link = tmp_path / "toy" / f"{NAME}.partial"
    link.symlink_to(notes)
    os.utime(link, (time.time() - 5 * 86400,) * 2, follow_symlinks=False)
    (item,) = find_garbage(tmp_path)
    delete_garbage(item)
    assert list((tmp_path / "toy").iterdir()) == []
    assert (notes / "file").read_bytes() == b"123"


def test_the_only_copy_of_a_store_is_put_back_and_never_listed(tmp_path):
    store = build_store(tmp_path)
    before = tree_of(store)
    long_ago(store)
    store.rename(store.with_name(f".{NAME}.aside"))
    assert find_garbage(tmp_path) == []
    assert is_published(store)
    assert tree_of(store) == before


def test_a_replaced_store_is_deleted_once_the_new_one_exists(tmp_path):
    store = build_store(tmp_path)
    replaced = folder_at(store.with_name(f".{NAME}.aside"))
    assert [item.path for item in find_garbage(tmp_path)] == [replaced]
    (store / "checksums.json").unlink()
    assert find_garbage(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--older-than", "-1"], "'-1' is not a number of days"),
        (["--older-than", "nan"], "'nan' is not a number of days"),
        (["--older-than", "long"], "'long' is not a number of days"),
        (["--larger-than", "1.2.3G"], "'1.2.3G' is not a size; write 500M, 20G or 1T"),
        (["--larger-than", "-1G"], "'-1G' is not a size"),
        (["--larger-than", "9" * 400], "is not a size; write 500M, 20G or 1T"),
    ],
)
def test_limits_that_mean_nothing_are_refused(arguments, message, capsys):
    option, value = arguments
    with pytest.raises(SystemExit):
        main(["gc", f"{option}={value}"])
    assert message in capsys.readouterr().err


def test_a_mirror_that_is_not_there_is_an_error(tmp_path, capsys):
    assert main(["gc", "--mirror", str(tmp_path / "typo")]) == 1
    assert "typo: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("grown", [True, False])
def test_a_store_is_superseded_by_a_newer_one_that_has_its_features(tmp_path, capsys, grown):
    """Not by an older one: removing utterances makes a smaller store, which is then in use."""
    small, large = {"a": (2, 2)}, {"a": (2, 2), "b": (1, 1)}
    first = build_store(tmp_path, small if grown else large)
    second = build_store(tmp_path, large if grown else small, recipe=recipe_of(utterances="22"))
    other_encoder = recipe_of(utterances="33", weights="01")
    third = build_store(tmp_path, {**large, "c": (1, 1)}, recipe=other_encoder)
    now = time.time()
    for age, store in enumerate((third, second, first)):
        os.utime(store / "checksums.json", (now, now - age))
    os.utime(first, (now + 9, now + 9))  # it was used last
    assert find_garbage(tmp_path) == []
    found = find_garbage(tmp_path, superseded=True)
    assert [item.path for item in found] == ([first] if grown else [])
    command = ["gc", "--mirror", str(tmp_path), "--superseded"]
    assert main([*command, "--yes"]) == 0
    assert (f"superseded by {second.name}" in capsys.readouterr().out) == grown
    assert [first.exists(), second.exists(), third.exists()] == [not grown, True, True]


def test_nothing_is_superseded_by_a_damaged_store(tmp_path, caplog):
    build_store(tmp_path, {"a": (2, 2)})
    newer = build_store(tmp_path, {"a": (2, 2), "b": (1, 1)}, recipe=recipe_of(utterances="22"))
    os.utime(newer / "checksums.json", (time.time() + 9,) * 2)
    assert len(find_garbage(tmp_path, superseded=True)) == 1
    chunk = newer / "audio/values/c/0/0"
    chunk.chmod(0o644)
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert find_garbage(tmp_path, superseded=True) == []
    assert "cache verify" in caplog.text
