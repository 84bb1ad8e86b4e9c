"""Atomic writes: the whole file under its name, or the file that was there before."""

import os
import stat

import pytest

from manifests.atomic import atomic_path, atomic_write


@pytest.mark.parametrize("chosen", [False, True])
def test_a_file_appears_whole_and_replaces_another(tmp_path, chosen):
    temporary = tmp_path / "elsewhere" / "waiting" if chosen else None
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_path(path, temporary) as writable:
        assert not chosen or writable == temporary
        writable.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "elsewhere", path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, error):
    def write_half():
        with atomic_path(path) as writable:
            writable.write_bytes(b"ne")
            raise error

    path = tmp_path / "file"
    atomic_write(path, b"old")
    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_and_rename_are_synced_in_this_order(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(kind)
        fsync(descriptor)

    def renamed(*names):
        events.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    atomic_write(tmp_path / "file", b"new")
    assert events == ["file", "rename", "folder"]


def test_permission_bits_are_added_to_those_of_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        atomic_write(tmp_path / "own", b"")
        atomic_write(tmp_path / "group", b"", mode=0o060)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "group").stat().st_mode) == 0o660
