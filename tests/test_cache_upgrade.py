"""Stores of format version 1 name no contents: ``upgrade`` records those of today's files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache import FeatureStore
from cache.__main__ import main as cache
from cache.share import catalog
from cache.share.gc import superseded_in
from cache.share.location import Location
from cache.share.push import push
from cache.share.verify import verify
from extract.__main__ import EXIT_SOME_FAILED
from extract.__main__ import main as extract
from tests.stores import tree_of

FIXTURE = Path(__file__).parent / "made_by_0_1_0"
STORE = Path(json.loads((FIXTURE / "expected.json").read_text())["store"]["path"])
COMMAND = ["upgrade", str(STORE), "--data", "data/old"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A copy of the dataset and its store of version 1 is the working folder."""
    for name in ("data", "stores"):
        shutil.copytree(FIXTURE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMANTICMAC_SHARES", raising=False)
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))


def upgraded() -> Path:
    assert cache(COMMAND) == 0
    (new,) = set(STORE.parent.glob("*.zarr")) - {STORE}
    return new


def test_the_features_are_copied_and_the_sources_asserted(capsys):
    before = tree_of(STORE)
    new = upgraded()
    assert "upgraded from" in capsys.readouterr().out
    assert tree_of(STORE) == before
    assert verify(new) == []
    old, store = FeatureStore.open(STORE), FeatureStore.open(new)
    assert store.attributes["format_version"] == 2
    assert store.attributes["asserted"] is True
    for modality in ("audio", "vision"):
        for file in (STORE / modality).rglob("c/*/0"):
            assert (new / file.relative_to(STORE)).read_bytes() == file.read_bytes()
    assert store.status == old.status
    named = dict(zip(store.ids, store.column("source_sha256"), strict=True))
    assert {i for i, sha256 in named.items() if not sha256} == {
        i for i, status in old.status.items() if status == "failed"
    }
    assert np.isnan(store.column("crop_x")).any()
    assert superseded_in([STORE, new]) == {STORE: new}


def test_extraction_goes_on_from_an_upgraded_store(capsys):
    """Its failed utterance is tried again once: whether its file was there is unknown."""
    new = upgraded()
    capsys.readouterr()
    assert extract(["old", "--workers", "1"]) == EXIT_SOME_FAILED
    ok = sum(status != "failed" for status in FeatureStore.open(new).status.values())
    assert f"Carried over: {ok} utterances" in capsys.readouterr().out
    assert extract(["old"]) == EXIT_SOME_FAILED
    assert "The store is complete" in capsys.readouterr().out
    (last,) = set(STORE.parent.glob("*.zarr")) - {STORE, new}
    assert FeatureStore.open(last).attributes["asserted"] is True


def test_failures_of_version_1_are_retried_after_the_upgrade_only(capsys):
    assert extract(["old", "--retry-failed"]) == 1
    assert f"cache upgrade {STORE} --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: cache(COMMAND), "names the contents of its videos already"),
        (lambda: shutil.rmtree("data/old/videos"), "give their folder with --data"),
        (lambda: next(STORE.rglob("values/c/0/0")).chmod(0o644), "cache verify"),
    ],
)
def test_what_cannot_be_upgraded(damage, message, capsys):
    command = COMMAND
    damage()
    new = set(STORE.parent.glob("*.zarr")) - {STORE}
    if new:
        command = ["upgrade", str(*new), "--data", "data/old"]
    if "verify" in message:
        chunk = next(STORE.rglob("values/c/0/0"))
        chunk.write_bytes(bytes(chunk.stat().st_size))
    capsys.readouterr()
    assert cache(command) == 1
    assert message in capsys.readouterr().err
    assert set(STORE.parent.glob("*.zarr")) - {STORE} == new
    assert not list(STORE.parent.glob("*.parts"))


def test_a_whole_share_is_upgraded_while_it_is_read(tmp_path, capsys):
    share = tmp_path / "share"
    push(STORE, str(share))
    before = tree_of(share / "old" / STORE.name)
    assert cache(["upgrade", str(share), "--data", "other=data/old"]) == 1
    assert "--data old=FOLDER" in capsys.readouterr().out
    assert cache(["upgrade", str(share), "--data", "old=data/old"]) == 0
    listed = catalog.entries(Location.parse(share))
    assert len(listed) == 2
    assert tree_of(share / "old" / STORE.name) == before
    (new,) = (entry for entry in listed if entry.name != STORE.name)
    assert verify(share / new.path) == []
    capsys.readouterr()
    assert cache(["upgrade", str(share), "--data", "old=data/old"]) == 0  # nothing is left to do
    assert len(catalog.entries(Location.parse(share))) == 2


def test_sources_of_version_1_are_unknown(capsys):
    assert cache(["sources", str(STORE)]) == 1
    assert "cache upgrade" in capsys.readouterr().err
