"""Stores behind a real web server: pulled, mirrored, used offline, used instead of extracting."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from cache import FeatureStore
from cache.__main__ import main
from cache.share.gc import find_garbage
from cache.share.location import ShareError
from cache.share.mirror import mirror, mirror_folder
from cache.share.push import push
from cache.share.verify import verify
from cache.store.checksums import CHECKSUMS
from extract import EncoderSpec, Settings, extract
from extract.__main__ import main as extract_main
from extract.ffmpeg import ffmpeg_exe
from manifests import Card, Manifest
from tests.stores import RECIPE, build_store, recipe_of, tree_of
from tests.web import WebServer

NAME = f"toy/{RECIPE.store_name}"
DAY = 86400


@pytest.fixture
def share(tmp_path) -> Path:
    """A folder with one pushed store."""
    push(build_store(tmp_path / "stores"), str(tmp_path / "share"))
    return tmp_path / "share"


@pytest.fixture
def web(share) -> Iterator[WebServer]:
    server = WebServer(share)
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    monkeypatch.delenv("SEMANTICMAC_SHARES", raising=False)
    return tmp_path / "mirror"


def damage(path: Path, data: bytes | None = None) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?" if data is None else data)


# --- reading a web server -------------------------------------------------------------------------


def test_pull_info_and_list_over_http(web, share, tmp_path, capsys):
    assert main(["list", web.url]) == 0
    assert RECIPE.digest[:12] in capsys.readouterr().out
    assert main(["info", f"{web.url}/{NAME}"]) == 0
    assert "bad: failed: why" in capsys.readouterr().out
    pulled = tmp_path / "pulled" / NAME
    for source in (f"{web.url}/{RECIPE.digest[:12]}", web.url, f"{web.url}/{NAME}"):
        assert main(["pull", source, "--stores", str(tmp_path / "pulled")]) == 0
    assert tree_of(pulled) == tree_of(share / NAME)
    assert verify(pulled) == []


def test_store_is_read_by_its_checksums_alone(web, share, tmp_path):
    """No listing: what the list does not name is not fetched, and nothing else is asked for."""
    before = tree_of(share / NAME)
    (share / NAME / "audio" / "extra").write_text("not published")
    (share / "catalog.json").unlink()
    assert main(["pull", f"{web.url}/{NAME}", "--stores", str(tmp_path / "pulled")]) == 0
    assert tree_of(tmp_path / "pulled" / NAME) == before


def test_flipped_bit_over_http_is_refused(web, share, tmp_path, capsys):
    damage(share / NAME / "audio/values/c/0/0")
    assert main(["pull", f"{web.url}/{NAME}", "--stores", str(tmp_path / "pulled")]) == 1
    assert "audio/values/c/0/0 is damaged" in capsys.readouterr().err
    assert not (tmp_path / "pulled" / NAME).exists()


def test_missing_store_and_dead_server_are_one_clear_line(web, tmp_path, capsys):
    to = ["--stores", str(tmp_path / "pulled")]
    assert main(["pull", f"{web.url}/toy/none-2fps-000000000000.zarr", *to]) == 1
    assert "is not a published store" in capsys.readouterr().err
    web.stop()
    assert main(["pull", f"{web.url}/{NAME}", *to]) == 1
    assert "annot connect" in capsys.readouterr().err


def test_repair_over_http(web, share, tmp_path, capsys):
    store = tmp_path / "stores" / NAME
    damage(store / "vision/values/c/0/0")
    assert main(["verify", str(store), "--repair", f"{web.url}/{NAME}"]) == 0
    assert "vision/values/c/0/0: was changed, fetched" in capsys.readouterr().out
    assert tree_of(store) == tree_of(share / NAME)


# --- the mirror -----------------------------------------------------------------------------------


def test_mirror_pulls_once_and_works_offline(web, share, cache_folder, caplog):
    caplog.set_level(logging.INFO)
    url = f"{web.url}/{NAME}"
    store = mirror(url)
    assert store == cache_folder / NAME
    assert tree_of(store) == tree_of(share / NAME)
    assert "pulled to" in caplog.text
    written = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    assert mirror(url) == store
    assert "using the local copy" in caplog.text
    web.stop()
    for name in (url, f"{web.url}/{RECIPE.digest}"):
        caplog.clear()
        assert mirror(name) == store
        assert "using the local copy" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in written} == written
    with pytest.raises(ShareError, match="annot connect"):
        mirror(f"{web.url}/toy/none-2fps-000000000000.zarr")


def test_mirror_follows_the_share(web, share, cache_folder, tmp_path, caplog):
    """The store was extracted again and the share's copy replaced by hand."""
    store = mirror(web.url)
    before = tree_of(store)
    features = FeatureStore.open(store).select(["a", "b"], resident=False)
    values = features.values["audio"].clone()
    again = build_store(tmp_path / "again", {"a": (1, 1)})
    (share / NAME).rename(tmp_path / "old")
    push(again, str(share))
    assert mirror(web.url) == store
    assert "has changed; replacing the local copy" in caplog.text
    assert tree_of(store) == tree_of(again) != before
    assert [p.name for p in store.parent.iterdir()] == [store.name]
    assert (features.values["audio"] == values).all()  # who reads the old one still can


def test_damaged_mirror_is_repaired(web, share, cache_folder, caplog):
    store = mirror(web.url)
    damage(store / "audio/values/c/0/0", b"")
    (store / "zarr.json").unlink()
    assert mirror(web.url) == store
    assert "is damaged; repairing" in caplog.text
    assert tree_of(store) == tree_of(share / NAME)


def test_mirror_of_a_folder_and_diff_by_url(web, share, tmp_path, capsys):
    store = mirror(str(share))
    assert tree_of(store) == tree_of(share / NAME)
    assert main(["diff", f"{web.url}/{NAME}", str(tmp_path / "stores" / NAME)]) == 0
    assert "nothing differs" in capsys.readouterr().out


def test_default_mirror_is_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("SEMANTICMAC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert mirror_folder() == tmp_path / ".cache" / "semanticmac"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert mirror_folder() == tmp_path / "xdg" / "semanticmac"


def test_gc_lists_first_and_deletes_with_yes(cache_folder, capsys):
    recipes = [recipe_of(weights=f"{i:02}") for i in range(3)]
    stores = [build_store(cache_folder, recipe=recipe) for recipe in recipes]
    for days, store in zip((90, 10, 1), stores, strict=True):
        os.utime(store, (time.time() - days * DAY,) * 2)
    size = sum(len(data) for data in tree_of(stores[0]).values())
    fresh, stale = (
        cache_folder / "toy" / f"{name}-2fps-000000000000.zarr.partial"
        for name in ("fresh", "stale")
    )
    for folder in (fresh, stale):
        folder.mkdir()
        (folder / "part").write_bytes(b"123")
    for path in (stale, stale / "part"):
        os.utime(path, (time.time() - 5 * DAY,) * 2)

    def found(**limits: float) -> list[Path]:
        return [item.path for item in find_garbage(cache_folder, **limits)]

    assert found() == [stale]
    assert found(older_than_days=30) == [stale, stores[0]]
    assert found(larger_than=2 * size) == [stale, stores[0]]
    assert found(larger_than=2 * size - 1) == [stale, *stores[:2]]
    assert found(older_than_days=5, larger_than=0) == [stale, *stores]

    assert main(["gc", "--older-than", "30"]) == 0
    output = capsys.readouterr().out
    assert "unused for 90 days" in output
    assert "--yes" in output
    assert stores[0].exists()
    assert main(["gc", "--older-than", "30", "--larger-than", "1G", "--yes"]) == 0
    left = sorted(path.name for path in (cache_folder / "toy").iterdir())
    assert left == sorted([stores[1].name, stores[2].name, fresh.name])
    assert main(["gc"]) == 0
    assert "nothing to delete" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["gc", "--larger-than", "much"])


# --- used instead of extracting -------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two short videos and their manifest."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    for i in range(2):
        picture = ["-f", "lavfi", "-i", f"testsrc=d={0.5 + i / 2}:r=10:s=32x32"]
        tone = ["-f", "lavfi", "-i", f"sine=f=440:d={0.5 + i / 2}"]
        command = [ffmpeg_exe(), "-loglevel", "error", *picture, *tone]
        subprocess.run([*command, str(folder / f"videos/{i}.mp4")], check=True)
    card = Card(name="toy", title="Toy", task="regression", range=[-3, 3], encoder="imagebind-tiny")
    rows = {"id": ["a", "b"], "video": ["videos/0.mp4", "videos/1.mp4"], "split": ["train", "test"]}
    Manifest(card, pd.DataFrame({**rows, "text": ["one", "two"], "label": 0.0})).save(folder)
    return folder


@pytest.fixture(scope="module")
def extracted(data, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("extracted")
    return extract(Manifest.load(data), data, root, Settings(EncoderSpec("imagebind-tiny"))).store


def test_extract_takes_features_from_a_share(extracted, data, tmp_path, monkeypatch, capsys):
    push(extracted, str(tmp_path / "lab"))
    server = WebServer(tmp_path / "lab")
    try:
        nowhere = tmp_path / "no videos here"  # so nothing can be decoded
        nowhere.mkdir()
        here = ["--data", str(nowhere), "--workers", "1"]
        root = tmp_path / "one"
        assert extract_main([str(data), *here, "--stores", str(root), "--share", server.url]) == 0
        output = capsys.readouterr().out
        assert f"Pulled from {server.url}/toy/{extracted.name}: nothing to decode." in output
        assert tree_of(root / "toy" / extracted.name) == tree_of(extracted)

        monkeypatch.setenv("SEMANTICMAC_SHARES", f"{tmp_path / 'unmounted'}, {server.url}")
        assert extract_main([str(data), *here, "--stores", str(tmp_path / "two")]) == 0
        assert "Pulled from" in capsys.readouterr().out

        assert (
            extract_main([str(data), *here, "--stores", str(tmp_path / "three"), "--no-share"]) == 1
        )
        assert "none of the 2 videos" in capsys.readouterr().err
    finally:
        server.stop()


def test_extract_continues_without_its_shares(extracted, data, tmp_path, caplog):
    """One is unreachable, one has a damaged copy: warnings, and the features are extracted."""
    push(extracted, str(tmp_path / "lab"))
    damage(tmp_path / "lab" / "toy" / extracted.name / "audio/values/c/0/0")
    shares = ("http://127.0.0.1:9", str(tmp_path / "lab"))
    settings = Settings(EncoderSpec("imagebind-tiny"), shares=shares)
    summary = extract(Manifest.load(data), data, tmp_path / "root", settings)
    assert summary.shared is None
    assert not summary.complete
    assert "annot connect" in caplog.text
    assert "is damaged" in caplog.text
    assert (summary.store / CHECKSUMS).read_bytes() == (extracted / CHECKSUMS).read_bytes()
    partial = summary.store.with_name(f"{summary.store.name}.partial")
    assert sorted(summary.store.parent.iterdir()) == [summary.store, partial]
    assert f"kept in {partial}" in caplog.text


def test_share_with_a_password_stops_extraction(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMANTICMAC_SHARES", "s3://key:hunter22@lab/x")
    assert extract_main([str(data), "--stores", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "must not" in err
    assert "hunter22" not in err
