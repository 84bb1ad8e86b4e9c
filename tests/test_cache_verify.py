"""Verify and repair: links out of a store, and the utterances of a faulty file."""

import json
import shutil
from pathlib import Path

import pytest

from cache.__main__ import main
from cache.share.remote_store import RemoteStore
from cache.share.repair import repair
from cache.share.transfer import download
from cache.share.verify import verify
from cache.store.checksums import Checksums
from tests.stores import build_store, tree_of
from tests.tampering import change_root, reseal, unseal

CHUNK = "audio/values/c/0/0"


@pytest.fixture
def store(tmp_path) -> Path:
    return unseal(build_store(tmp_path / "here"))


@pytest.fixture
def good(tmp_path, store) -> Path:
    """Another copy."""
    return shutil.copytree(store, tmp_path / "there" / "toy" / store.name)


def test_a_chunk_that_is_a_link_is_a_fault_and_repaired(tmp_path, store, good):
    before, elsewhere = tree_of(store), tmp_path / "elsewhere"
    shutil.move(store / CHUNK, elsewhere)
    (store / CHUNK).symlink_to(elsewhere)
    (fault,) = verify(store)
    assert (fault.file, fault.problem, fault.utterances) == (CHUNK, "link", ("a", "b", "c"))
    repair(store, str(good))
    assert not (store / CHUNK).is_symlink()
    assert tree_of(store) == before
    assert elsewhere.read_bytes() == before[CHUNK]


def test_a_linked_folder_is_a_fault_and_what_it_leads_to_stays(tmp_path, store, good):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_text("x")
    (store / "more").symlink_to(outside)
    assert [(f.file, f.problem) for f in verify(store)] == [("more", "link")]
    repair(store, str(good))
    assert verify(store) == []
    assert (outside / "big").read_text() == "x"


def test_repair_never_writes_through_a_link(tmp_path, store):
    """A copy may list a file for the very place that a link in the store leads to."""
    (store / "k").mkdir()
    (store / "k" / "authorized_keys").write_text("of another")
    reseal(store)
    good = shutil.copytree(store, tmp_path / "there" / "toy" / store.name)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "authorized_keys").write_text("mine")
    shutil.rmtree(store / "k")
    (store / "k").symlink_to(victim)
    checksums = Checksums.of(store)
    with pytest.raises(OSError, match="k is a symlink, or is behind one"):
        download(RemoteStore.parse(good), checksums, ["k/authorized_keys"], store)
    assert [f.problem for f in verify(store)] == ["link", "link"]
    repair(store, str(good))
    assert verify(store) == []
    assert (store / "k" / "authorized_keys").read_text() == "of another"
    assert (victim / "authorized_keys").read_text() == "mine"


def test_linked_checksums_are_a_fault_and_become_a_file(tmp_path, store, good):
    listed = store / "checksums.json"
    shutil.move(listed, tmp_path / "elsewhere")
    listed.symlink_to(tmp_path / "elsewhere")
    assert [(f.file, f.problem) for f in verify(store)] == [("checksums.json", "link")]
    repair(store, str(good))
    assert not listed.is_symlink()
    assert verify(store) == []


def test_each_faulty_chunk_names_its_utterances(tmp_path, monkeypatch):
    """One row a chunk: by arithmetic and by looking one gets the same."""
    monkeypatch.setattr("cache.store.assemble.CHUNK_BYTES", 6)
    lengths = {f"u{i:02}": (i % 4, 1 + i % 3) for i in range(40)}
    store = build_store(tmp_path, lengths, block=40)
    rows = [i for i, (audio, _) in lengths.items() for _ in range(audio)]
    for row in range(len(rows)):
        (store / f"audio/values/c/{row}/0").unlink()
    found = {fault.file: fault.utterances for fault in verify(store)}
    assert found == {f"audio/values/c/{n}/0": (i,) for n, i in enumerate(rows)}


def test_the_index_is_read_once_however_many_files_are_faulty(tmp_path, monkeypatch):
    from cache.share import verify as module

    monkeypatch.setattr("cache.store.assemble.CHUNK_BYTES", 6)
    store = build_store(tmp_path, {f"u{i}": (2, 2) for i in range(9)})
    reads, read_column = [], module.read_column
    monkeypatch.setattr(module, "read_column", lambda path: reads.append(path) or read_column(path))
    for path in store.glob("audio/values/c/*/0"):
        path.unlink()
    assert len(verify(store)) == 18
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda root: root["attributes"].update(format_version=3), "format version 3"),
        (lambda root: root["attributes"].update(digest="f" * 64), "digest is 'ffff"),
    ],
)
def test_files_as_published_are_not_enough(store, good, capsys, change, problem):
    change_root(store, change)
    (fault,) = verify(store)
    assert fault.file == "zarr.json"
    assert problem in fault.problem
    change_root(good, change)
    assert main(["verify", str(store), "--repair", str(good)]) == 1
    assert "published like this" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["audio", "audio/values/c/0/0", "utterances/status/zarr.json"])
def test_what_is_neither_there_nor_listed_is_a_fault(store, gone):
    path = store / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    reseal(store)
    (fault,) = verify(store)
    assert fault.problem == "not listed"
    assert fault.file.startswith(gone)


def test_arrays_of_another_shape_are_a_fault(store):
    path = store / "vision/values/zarr.json"
    meta = json.loads(path.read_text())
    meta["shape"] = [10**15, 5]
    path.write_text(json.dumps(meta))
    reseal(store)
    (fault,) = verify(store)
    assert "vision/values/zarr.json is not feature-store metadata" in fault.problem
