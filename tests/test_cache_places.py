"""A store's place that is taken by something else: a user's notes, a link to a user's folder."""

import shutil
from pathlib import Path

import pytest

from cache.__main__ import main
from cache.share.location import ShareError
from cache.share.mirror import mirror
from cache.share.push import push
from cache.share.repair import repair
from cache.share.verify import verify
from tests.stores import RECIPE, build_store, tree_of
from tests.tampering import unseal

NAME = RECIPE.store_name


@pytest.fixture
def store(tmp_path) -> Path:
    return build_store(tmp_path / "here")


@pytest.fixture
def notes(tmp_path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "notes.txt").write_text("years of work")
    (folder / "zarr.json").write_text("of another project")
    return folder


NOTES = {"notes.txt": b"years of work", "zarr.json": b"of another project"}


# --- push -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("holds", ["folder", "link", "linked folder"])
def test_push_goes_into_nothing_of_anybody(tmp_path, store, notes, holds, capsys):
    place = tmp_path / "share" / "toy" / NAME
    if holds == "linked folder":
        place.mkdir(parents=True)
        (place / "audio").symlink_to(notes)
    else:
        place.parent.mkdir(parents=True)
        notes.rename(place) if holds == "folder" else place.symlink_to(notes)
    for arguments in ([], ["--take-over"]):
        assert main(["push", str(store), str(tmp_path / "share"), *arguments]) == 1
        assert "Nothing was changed; move it away and push again." in capsys.readouterr().err
    assert tree_of(place if holds == "folder" else notes) == NOTES
    assert not place.with_name(f"{NAME}.pushing").exists()  # nothing is left


@pytest.mark.parametrize("location", ["", " "])
def test_an_empty_location_is_not_the_folder_one_is_in(
    tmp_path, store, location, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["push", str(store), location]) == 1
    assert "the location is empty" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_push_tidies_up_after_a_push_that_died(tmp_path, store):
    place = tmp_path / "share" / "toy" / NAME
    (place / "audio/values/c/9").mkdir(parents=True)
    (place / "audio/values/c/9/0").write_text("of a store with more rows")
    push(store, str(tmp_path / "share"))
    assert tree_of(place) == tree_of(store)


def test_the_folder_one_is_in_may_be_the_store(tmp_path, store, monkeypatch):
    monkeypatch.chdir(store)
    for command in ["info", "."], ["verify", "."], ["push", ".", str(tmp_path / "share")]:
        assert main(command) == 0


# --- pull and mirror ------------------------------------------------------------------------------


def test_pull_does_not_work_behind_a_link(tmp_path, store, notes):
    push(store, str(tmp_path / "share"))
    mine = tmp_path / "mine" / "toy"
    mine.mkdir(parents=True)
    (mine / f"{NAME}.partial").symlink_to(notes)
    assert main(["pull", str(tmp_path / "share"), "--stores", str(tmp_path / "mine")]) == 0
    assert tree_of(notes) == NOTES
    assert not (mine / NAME).is_symlink()
    assert verify(mine / NAME) == []


def test_a_store_linked_into_the_mirror_is_never_written_to(tmp_path, store):
    before = tree_of(store)
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    (tmp_path / "mirror" / "toy" / NAME).symlink_to(store)
    for number, lengths in enumerate(({"a": (4, 4)}, {"a": (4, 4), "b": (1, 1)})):
        other = build_store(tmp_path / f"new{number}", lengths)
        push(other, str(tmp_path / f"share{number}"))
        pulled = mirror(str(tmp_path / f"share{number}" / "toy" / NAME), tmp_path / "mirror")
        assert tree_of(pulled) == tree_of(other)
        assert [path.name for path in pulled.parent.iterdir()] == [NAME]
        assert tree_of(store) == before


def test_a_mirrored_store_with_unreadable_checksums_is_pulled_again(tmp_path, store):
    push(store, str(tmp_path / "share"))
    there = str(tmp_path / "share" / "toy" / NAME)
    pulled = unseal(mirror(there, tmp_path / "mirror"))
    (pulled / "checksums.json").write_text("{")
    assert tree_of(mirror(there, tmp_path / "mirror")) == tree_of(store)
    unseal(pulled)
    (pulled / "checksums.json").write_text("{")
    shutil.rmtree(tmp_path / "share")
    with pytest.raises(ShareError, match="no such folder"):
        mirror(there, tmp_path / "mirror")


# --- repair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["thesis", "toy"])
def test_repair_does_not_touch_a_folder_that_is_not_a_store(tmp_path, store, notes, name, capsys):
    copy = shutil.copytree(store, tmp_path / "there" / "toy" / NAME)
    wrong = notes.rename(tmp_path / name) if name == "thesis" else store.parent
    before = tree_of(wrong)
    assert main(["verify", str(wrong), "--repair", str(copy)]) == 1
    assert f"and is not named {NAME}. Nothing was changed" in capsys.readouterr().err
    assert tree_of(wrong) == before


def test_repair_takes_lost_checksums_from_the_copy(tmp_path, store):
    copy = shutil.copytree(store, tmp_path / "there" / "toy" / NAME)
    (store / "checksums.json").unlink()
    repair(store, str(copy))
    assert tree_of(store) == tree_of(copy)
