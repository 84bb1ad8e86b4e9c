"""Something else may have a lock file's name: it is not changed, and nothing waits for it."""

import os
import socket
import stat
from pathlib import Path

import pytest

from cache.__main__ import main
from cache.share.pull import pull
from cache.share.push import push
from cache.share.remote_store import RemoteStore
from cache.store.disk import locked
from cache.store.temp_paths import TempPath, staging_lock
from tests.stores import RECIPE, build_store, tree_of


def take(path: Path, how: str, precious: Path) -> None:
    """Give a lock's name to something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("years of work")
    if how == "link":
        path.symlink_to(precious)
    elif how == "dangling link":
        path.symlink_to(precious.with_name("made through a link"))
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")
    elif how == "folder":
        path.mkdir()
    elif how == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.write_text("years of work")


TAKEN = ("link", "dangling link", "pipe", "device", "folder", "socket", "content")


@pytest.mark.parametrize("how", TAKEN)
def test_what_has_a_locks_name_is_neither_changed_nor_waited_for(tmp_path, how):
    lock, precious = tmp_path / "x.lock", tmp_path / "precious"
    take(lock, how, precious)
    before = lock.lstat()
    message = r"x\.lock should be an empty lock file, .* move it away"
    with pytest.raises(ValueError, match=message), locked(lock):
        pytest.fail("it was locked")
    after = lock.lstat()
    assert (after.st_ino, after.st_size, after.st_mode) == (
        *(before.st_ino, before.st_size),
        before.st_mode,
    )
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "made through a link").exists()


@pytest.mark.parametrize("how", ["link", "pipe"])
def test_a_pull_and_a_publication_name_the_lock_and_the_remedy(tmp_path, how, capsys):
    store = build_store(tmp_path / "here")
    push(store, str(tmp_path / "share"))
    target = tmp_path / "mine" / "toy" / store.name
    take(TempPath.PULL_LOCK.next_to(target), how, tmp_path / "precious")
    assert main(["pull", str(tmp_path / "share"), "--stores", str(tmp_path / "mine")]) == 1
    error = capsys.readouterr().err
    assert f"{TempPath.PULL_LOCK.next_to(target)} should be an empty lock file" in error
    take(staging_lock(TempPath.PARTS.next_to(target)), how, tmp_path / "precious")
    with pytest.raises(ValueError, match=r"assembling\.lock should be an empty lock file"):
        build_store(tmp_path / "mine")
    assert (tmp_path / "precious").read_text() == "years of work"


def test_the_lock_of_a_killed_process_is_taken_over_and_deleted(tmp_path):
    lock = tmp_path / "x.lock"
    lock.touch()
    lock.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    with locked(lock) as alone:
        assert alone
    assert not lock.exists()


def test_a_pull_under_a_lock_gives_the_store(tmp_path):
    store = build_store(tmp_path / "here")
    shared, *_ = push(store, str(tmp_path / "share"))
    pulled, _ = pull(RemoteStore.parse(str(shared)), tmp_path / "mine")
    assert tree_of(pulled) == tree_of(store)
    assert sorted(p.name for p in pulled.parent.iterdir()) == [RECIPE.store_name]
