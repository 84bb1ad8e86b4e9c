"""Two machines at work on one store, over a network file system whose locks hold on one only."""

import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache import Parts, publish
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore, resolve_one
from cache.share.verify import verify
from cache.store.publish import is_published, remove_leftovers, republish
from cache.store.temp_paths import new_staging
from tests.stores import (
    FILES,
    LENGTHS,
    RECIPE,
    WIDTHS,
    build_store,
    records_of,
    tree_of,
    write_part,
)

NAME = f"toy/{RECIPE.store_name}"


def lock_nobody(monkeypatch, alone: bool) -> None:
    """Locks that every process gets at once (they work on one machine only), or none (no locks)."""

    @contextmanager
    def locked(path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield alone

    for module in ("share.pull", "store.publish"):
        monkeypatch.setattr(f"cache.{module}.locked", locked)


class KilledError(Exception):
    """Ends a run as early as a signal would."""


# --- pulls ----------------------------------------------------------------------------------------


def pull_while(share: str, to: Path, monkeypatch, meanwhile, at: int = 7) -> Path:
    """Pull; before the file number ``at`` comes, something else happens."""
    read, calls = RemoteStore.read, []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            meanwhile()
        return read(*arguments)

    monkeypatch.setattr(RemoteStore, "read", counted)
    return pull(resolve_one(share), to, workers=1)[0]


@pytest.mark.parametrize("alone", [True, False])
def test_two_pulls_that_do_not_see_each_other(tmp_path, monkeypatch, alone):
    source = build_store(tmp_path / "here")
    share, to = str(tmp_path / "share"), tmp_path / "pulled"
    push(source, share)
    lock_nobody(monkeypatch, alone)
    store = pull_while(share, to, monkeypatch, lambda: pull(resolve_one(share), to))
    assert tree_of(store) == tree_of(source)
    assert list(store.parent.iterdir()) == [store]


def test_what_another_took_from_a_pull_is_not_missing_in_the_store(tmp_path, monkeypatch):
    source = build_store(tmp_path / "here")
    share, to = str(tmp_path / "share"), tmp_path / "pulled"
    push(source, share)
    partial = to / f"{NAME}.partial"
    with pytest.raises(ValueError, match="pull again"):
        pull_while(share, to, monkeypatch, lambda: shutil.rmtree(partial))
    assert not is_published(to / NAME)
    assert tree_of(pull(resolve_one(share), to)[0]) == tree_of(source)


def test_without_locks_an_interrupted_pull_goes_on_too(tmp_path, monkeypatch):
    source = build_store(tmp_path / "here")
    share, to = str(tmp_path / "share"), tmp_path / "pulled"
    push(source, share)
    lock_nobody(monkeypatch, alone=False)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        pull_while(share, to, patch, interrupt, at=7)
    store, copied = pull(resolve_one(share), to)
    assert copied <= FILES - 6
    assert tree_of(store) == tree_of(source)
    assert list(store.parent.iterdir()) == [store]


# --- assembling -----------------------------------------------------------------------------------


def publish_on(node: str, root: Path, monkeypatch, on_chunk=None) -> Path:
    monkeypatch.setattr("platform.node", lambda: node)
    about = {"licence": "none"}
    return publish(root / NAME, RECIPE, WIDTHS, about, list(LENGTHS), on_chunk)


def test_a_machine_leaves_alone_what_another_is_assembling(tmp_path, monkeypatch):
    lock_nobody(monkeypatch, alone=True)
    calm = build_store(tmp_path / "calm")
    write_part(tmp_path / NAME, records_of(LENGTHS))

    def killed(_written, _in_all):
        raise KilledError

    def another(written, _in_all):
        if written == 1:
            with pytest.raises(KilledError):
                publish_on("second", tmp_path, monkeypatch, killed)

    store = publish_on("first", tmp_path, monkeypatch, another)
    assert tree_of(store) == tree_of(calm)


@pytest.mark.parametrize("lost", [".", "audio/values/c"])
def test_a_store_that_lost_files_while_it_was_assembled_is_none(tmp_path, monkeypatch, lost):
    write_part(tmp_path / NAME, records_of(LENGTHS))

    def lose(written, _in_all):
        if written == 1:
            for staging in Parts(tmp_path / NAME).folder.glob("assembling-*"):
                shutil.rmtree(staging / lost)

    with pytest.raises(ValueError, match=r"(No such file|another process removed) .* are kept"):
        publish_on("here", tmp_path, monkeypatch, lose)
    assert not is_published(tmp_path / NAME)
    assert verify(publish_on("here", tmp_path, monkeypatch)) == []


@pytest.mark.parametrize("lost", ["vision/values/c/0/0", "zarr.json", "checksums.json"])
def test_a_store_that_lost_files_before_its_name_is_none(tmp_path, monkeypatch, lost):
    """After it was checked and while it is synced, which takes long."""
    from cache.store import assemble

    seal = assemble.make_tree_read_only

    def lose(folder: Path) -> None:
        seal(folder)
        (folder / lost).unlink()

    store = build_store(tmp_path)
    before = tree_of(store)
    monkeypatch.setattr(assemble, "make_tree_read_only", lose)
    with pytest.raises(ValueError, match="No such file"):
        build_store(tmp_path / "other")
    with pytest.raises(ValueError, match="the store is unchanged"):
        republish(store, RECIPE, WIDTHS, {}, Parts(store.with_name("none")))
    assert tree_of(store) == before
    assert not is_published(tmp_path / "other" / NAME)


def test_leftovers_go_when_nobody_can_be_at_work_on_them(tmp_path, monkeypatch):
    staged = {}
    for node in ("here", "there", "long ago"):
        monkeypatch.setattr("platform.node", lambda node=node: node)
        staged[node] = new_staging(tmp_path)
        (staged[node] / "audio").mkdir(parents=True)
        (staged[node] / "audio" / "zarr.json").touch()
    before = time.time() - 4000
    for path in (staged["long ago"], *staged["long ago"].rglob("*")):
        os.utime(path, (before, before))
    monkeypatch.setattr("platform.node", lambda: "here")
    remove_leftovers(tmp_path, alone=False)
    assert sorted(tmp_path.iterdir()) == sorted([staged["here"], staged["there"]])
    remove_leftovers(tmp_path, alone=True)
    assert list(tmp_path.iterdir()) == [staged["there"]]
