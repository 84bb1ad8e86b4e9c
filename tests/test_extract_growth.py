"""Datasets that grow and change: only new contents are decoded, and the store is the same."""

import errno
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache import FeatureStore
from cache.__main__ import main as cache
from cache.share.push import push
from cache.share.verify import verify
from cache.store import sources
from cache.store.sources import SourceIndex, signature_of
from cache.upgrade import differing_sizes
from extract import ClusterSpec, EncoderSpec, Settings, extract
from extract.__main__ import EXIT_SOME_FAILED, main
from extract.engine import Summary
from extract.request import failed_ids
from manifests import Card, Manifest
from tests.stores import tree_of
from tests.test_extract import write_clip

CARD = Card(name="toy", title="Toy", task="regression", range=[-3, 3], encoder="imagebind-tiny")
Cuts = dict[str, tuple[str, float | None, float | None]]


def write(data: Path, cuts: Cuts) -> Manifest:
    """Save a manifest: id -> (video, start, end)."""
    videos, starts, ends = zip(*cuts.values(), strict=True)
    table = pd.DataFrame(
        {
            "id": list(cuts),
            "video": videos,
            "start": np.array(starts, float),
            "end": np.array(ends, float),
            "split": (["train", "valid", "test"] * len(cuts))[: len(cuts)],
            "text": "a",
            "label": 0.0,
        }
    )
    manifest = Manifest(CARD, table)
    manifest.save(data)
    return Manifest.load(data)


def grow(data: Path, stores: Path, cuts: Cuts, name: str = "toy", **settings) -> Summary:
    """Extract the dataset as it is now."""
    manifest = write(data, cuts)
    manifest.card = replace(CARD, name=name)
    spec = EncoderSpec("imagebind-tiny")
    return extract(manifest, data, stores, Settings(spec, cluster=ClusterSpec(1), **settings))


def content_of(store: Path) -> dict[str, bytes]:
    """The files of the arrays and of the table."""
    outside = ("zarr.json", "checksums.json")
    return {name: data for name, data in tree_of(store).items() if name not in outside}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Five clips of different contents."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        write_clip(folder / f"{i}.mp4", 0.6 + i / 2)
    return folder


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def whole(*names: str) -> Cuts:
    return {name.partition(".")[0]: (name, None, None) for name in names}


def test_a_store_grown_in_steps_equals_one_made_at_once(clips, data, tmp_path):
    stores = tmp_path / "stores"
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    first = grow(data, stores, whole("0.mp4", "1.mp4"))
    assert (first.extracted, first.carried) == (2, 0)

    added = grow(data, stores, whole("0.mp4", "1.mp4", "2.mp4"))
    assert (added.extracted, added.carried, added.replaced, added.removed) == (1, 2, 0, 0)
    assert (added.saved_s or 0) > 0

    shutil.copy(clips / "3.mp4", data / "1.mp4")
    replaced = grow(data, stores, whole("0.mp4", "1.mp4", "2.mp4"))
    assert (replaced.extracted, replaced.carried, replaced.replaced) == (1, 2, 1)

    cuts = {**whole("0.mp4", "1.mp4"), "2": ("2.mp4", 0.5, 1.5), "2b": ("2.mp4", None, None)}
    cut = grow(data, stores, cuts)
    assert (cut.extracted, cut.carried) == (1, 3)  # 2b is what 2 was

    del cuts["0"]
    removed = grow(data, stores, cuts)
    assert (removed.extracted, removed.carried, removed.removed) == (0, 3, 1)

    (data / "1.mp4").rename(data / "one.mp4")
    cuts["1"] = ("one.mp4", None, None)
    renamed = grow(data, stores, cuts)
    assert renamed.complete
    assert renamed.store == removed.store

    once = grow(data, tmp_path / "once", cuts)
    assert once.store.name == removed.store.name
    assert content_of(once.store) == content_of(removed.store)
    assert verify(removed.store) == []
    assert not list(stores.glob("toy/*.parts"))


def test_a_video_replaced_under_its_name_and_time_is_noticed(clips, data, tmp_path):
    video = data / "a.mp4"
    shutil.copy(clips / "0.mp4", video)
    before = grow(data, tmp_path / "s", whole("a.mp4"))
    then, content = video.stat(), bytearray(video.read_bytes())
    content[-1] ^= 1  # in the last atom, which no decoder needs
    video.write_bytes(content)
    os.utime(video, ns=(then.st_atime_ns, then.st_mtime_ns))
    after = grow(data, tmp_path / "s", whole("a.mp4"))
    assert after.store != before.store
    assert (after.extracted, after.replaced) == (1, 1)


def test_equal_contents_have_equal_digests_whatever_they_are_called(clips, data, tmp_path):
    shutil.copy(clips / "0.mp4", data / "a.mp4")
    one = grow(data, tmp_path / "s", {"u": ("a.mp4", None, None)})
    (tmp_path / "moved/deep").mkdir(parents=True)
    shutil.copy(clips / "0.mp4", tmp_path / "moved/deep/b.mp4")
    two = grow(tmp_path / "moved", tmp_path / "t", {"u": ("deep/b.mp4", None, None)})
    assert one.store.name == two.store.name
    assert content_of(one.store) == content_of(two.store)


def test_unchanged_videos_are_hashed_once(clips, data, tmp_path, monkeypatch):
    hashed: list[str] = []
    real = sources.sha256_of
    monkeypatch.setattr(sources, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    monkeypatch.setattr(sources, "_SETTLED_S", 0.0)
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    stores, cuts = tmp_path / "s", whole("0.mp4", "1.mp4")
    grow(data, stores, cuts)
    assert sorted(hashed) == ["0.mp4", "1.mp4"]
    assert grow(data, stores, cuts).complete
    assert len(hashed) == 2
    shutil.copy(clips / "2.mp4", data / "1.mp4")
    assert grow(data, stores, cuts).replaced == 1
    assert hashed[2:] == ["1.mp4"]
    assert grow(data, stores, cuts, rehash=True).complete
    assert len(hashed) == 5
    (index,) = stores.glob(".sources-*")
    index.write_text("{broken")
    assert grow(data, stores, cuts).complete
    assert len(hashed) == 7


def test_features_outlive_their_video(clips, data, tmp_path, capsys):
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    stores = tmp_path / "s"
    first = grow(data, stores, whole("0.mp4", "1.mp4"))
    (data / "0.mp4").unlink()
    shutil.copy(clips / "2.mp4", data)
    write(data, whole("0.mp4", "1.mp4", "2.mp4"))
    command = [str(data), "--stores", str(stores), "--workers", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "although the video is missing: 0" in out
    assert "Carried over: 2 utterances" in out
    (second,) = set(stores.glob("toy/*.zarr")) - {first.store}
    shutil.copy(clips / "0.mp4", data)
    assert grow(data, stores, whole("0.mp4", "1.mp4", "2.mp4")).store == second  # it tells nothing


def test_a_missing_video_is_extracted_when_it_is_there(clips, data, tmp_path):
    shutil.copy(clips / "0.mp4", data)
    cuts, stores = whole("0.mp4", "1.mp4"), tmp_path / "s"
    first = grow(data, stores, cuts)
    assert failed_ids(first.store) == {"1"}
    assert grow(data, stores, cuts).complete
    shutil.copy(clips / "1.mp4", data)
    second = grow(data, stores, cuts)
    assert second.store != first.store
    assert (second.extracted, second.carried) == (1, 1)
    assert failed_ids(second.store) == set()


def test_a_failed_row_is_carried_over_until_it_is_retried(clips, data, tmp_path):
    (data / "bad.mp4").write_text("not a video")
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    stores = tmp_path / "s"
    grow(data, stores, whole("0.mp4", "bad.mp4"))
    second = grow(data, stores, whole("0.mp4", "1.mp4", "bad.mp4"))
    assert (second.extracted, second.carried) == (1, 2)
    before = content_of(second.store)
    again = grow(data, stores, whole("0.mp4", "1.mp4", "bad.mp4"), retry_failed=True)
    assert again.store == second.store
    assert again.extracted == 1
    assert content_of(again.store) == before


def test_damaged_features_are_not_carried_over(clips, data, tmp_path, caplog):
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    stores = tmp_path / "s"
    first = grow(data, stores, whole("0.mp4", "1.mp4"))
    chunk = first.store / "audio/values/c/0/0"
    chunk.chmod(0o644)
    chunk.write_bytes(bytes(chunk.stat().st_size))
    with caplog.at_level(logging.WARNING):
        second = grow(data, stores, whole("0.mp4", "1.mp4", "2.mp4"))
    assert (second.extracted, second.carried) == (3, 0)
    assert "cache verify" in caplog.text
    once = grow(data, tmp_path / "once", whole("0.mp4", "1.mp4", "2.mp4"))
    assert content_of(once.store) == content_of(second.store)


def test_an_interrupted_run_keeps_what_was_not_replaced(clips, data, tmp_path, monkeypatch):
    monkeypatch.setattr("extract.plan.MAX_BLOCK_UTTERANCES", 1)
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    stores, cuts = tmp_path / "s", whole("0.mp4", "1.mp4", "2.mp4")
    manifest = write(data, cuts)
    settings = Settings(EncoderSpec("imagebind-tiny"), cluster=ClusterSpec(1))

    class StoppedError(Exception):
        pass

    def stop(tally) -> None:
        if tally.done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        extract(manifest, data, stores, settings, on_block=stop)
    shutil.copy(clips / "4.mp4", data / "0.mp4")  # blocks are in the order of the videos
    summary = grow(data, stores, cuts)
    assert summary.resumed in (1, 2)  # a block that was running may have finished as well
    once = grow(data, tmp_path / "once", cuts)
    assert content_of(once.store) == content_of(summary.store)


def test_a_share_is_asked_by_names_and_sizes_before_anything_is_hashed(
    clips, data, tmp_path, capsys
):
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    cuts, share = whole("0.mp4", "1.mp4"), tmp_path / "share"
    first = grow(data, tmp_path / "theirs", cuts)
    push(first.store, str(share))
    stores = tmp_path / "ours"
    pulled = grow(data, stores, cuts, shares=(str(share),))
    assert pulled.shared == f"{share}/toy/{first.store.name}"
    assert not list(stores.glob(".sources-*"))
    assert tree_of(pulled.store) == tree_of(first.store)
    # labels alone
    for i in range(2):
        (data / f"{i}.mp4").unlink()
    command = [str(data), "--share", str(share), "--stores", str(tmp_path / "labels")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "Pulled from" in out
    assert "not their contents" in out
    # other sizes
    for i in range(2):
        shutil.copy(clips / f"{i + 1}.mp4", data / f"{i}.mp4")
    other = grow(data, tmp_path / "other", cuts, shares=(str(share),))
    assert other.shared is None
    assert other.borrowed == 1  # the content of 1.mp4, now called 0.mp4
    assert other.extracted == 1


def test_single_rows_are_copied_from_a_share(clips, data, tmp_path, capsys):
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    share = tmp_path / "share"
    theirs = grow(data, tmp_path / "theirs", whole("0.mp4", "1.mp4"))
    push(theirs.store, str(share))
    write(data, whole("1.mp4", "2.mp4"))
    command = [str(data), "--share", str(share), "--stores", str(tmp_path / "ours")]
    assert main([*command, "--workers", "1"]) == 0
    assert "Carried over: 1 utterances (1 from a share)" in capsys.readouterr().out
    (ours,) = (tmp_path / "ours/toy").iterdir()
    once = grow(data, tmp_path / "once", whole("1.mp4", "2.mp4"))
    assert content_of(once.store) == content_of(ours)


def test_a_video_that_changes_during_the_run_fails(clips, data, tmp_path, monkeypatch):
    shutil.copy(clips / "0.mp4", data)
    shutil.copy(clips / "1.mp4", data)
    manifest = write(data, whole("0.mp4", "1.mp4"))
    settings = Settings(EncoderSpec("imagebind-tiny"), cluster=ClusterSpec(1))

    def replace_it(done: int, total: int) -> None:
        if done == total:
            shutil.copy(clips / "3.mp4", data / "1.mp4")

    summary = extract(manifest, data, tmp_path / "s", settings, on_hash=replace_it)
    assert [i for i, _ in summary.failures] == ["1"]
    assert "changed during the extraction" in summary.failures[0][1]
    assert grow(data, tmp_path / "s", whole("0.mp4", "1.mp4")).statuses == {"ok": 2}


def test_sources_are_compared(clips, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SEMANTICMAC_CACHE", str(tmp_path / "mirror"))
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    store = grow(data, tmp_path / "s", whole("0.mp4", "1.mp4", "2.mp4")).store
    command = ["sources", str(store), "--manifest", str(data)]
    assert cache(command) == 0
    assert "3 utterances are those of the store" in capsys.readouterr().out
    shutil.copy(clips / "3.mp4", data / "0.mp4")
    (data / "1.mp4").unlink()
    assert cache([*command, "--data", str(data)]) == 1
    out = capsys.readouterr().out
    assert "1 utterances differ from the store's: 0" in out
    assert "1 utterances are missing here: 1" in out
    assert "1 utterances are those of the store" in out


def test_dry_run_counts_what_is_new_without_hashing(clips, data, tmp_path, capsys):
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    stores = tmp_path / "s"
    grow(data, stores, whole("0.mp4", "1.mp4"))
    for index in stores.glob(".sources-*"):
        index.unlink()
    command = [str(data), "--stores", str(stores), "--dry-run", "--workers", "1"]
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    write(data, whole("0.mp4", "1.mp4", "2.mp4"))
    assert main(command) == 0
    assert "│ 1          │" in capsys.readouterr().out
    assert not list(stores.glob(".sources-*"))


def test_a_failure_is_reported_after_growth(clips, data, tmp_path):
    shutil.copy(clips / "0.mp4", data)
    write(data, whole("0.mp4", "1.mp4"))
    command = [str(data), "--stores", str(tmp_path / "s"), "--workers", "1"]
    assert main(command) == EXIT_SOME_FAILED
    assert FeatureStore.open(next((tmp_path / "s/toy").glob("*.zarr"))).status["1"] == "failed"


def test_an_id_of_another_dataset_is_another_utterance(clips, data, tmp_path):
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    grow(data, tmp_path / "s", whole("0.mp4", "1.mp4"))
    (data / "1.mp4").unlink()
    shutil.copy(clips / "2.mp4", data / "0.mp4")
    other = grow(data, tmp_path / "s", whole("0.mp4", "1.mp4"), name="other")
    assert failed_ids(other.store) == {"1"}
    assert (other.extracted, other.carried, other.gone) == (2, 0, ())


def test_ids_that_were_swapped_are_not_taken_for_each_other(clips, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_SETTLED_S", 0.0)
    for i in range(3):
        shutil.copy(clips / f"{i}.mp4", data)
    cuts: Cuts = {"a": ("0.mp4", None, None), "b": ("1.mp4", None, None)}
    first = FeatureStore.open(grow(data, tmp_path / "s", cuts).store)
    for i in range(2):
        (data / f"{i}.mp4").unlink()
    cuts = {"a": ("1.mp4", None, None), "b": ("0.mp4", None, None), "c": ("2.mp4", None, None)}
    second = grow(data, tmp_path / "s", cuts)
    assert second.gone == ("a", "b")
    was, now = (
        first.column("source_sha256"),
        FeatureStore.open(second.store).column("source_sha256"),
    )
    assert now[:2].tolist() == was[::-1].tolist()


def test_features_of_a_video_that_comes_and_goes_are_kept(clips, data, tmp_path):
    stores, cuts = tmp_path / "s", whole("0.mp4", "1.mp4")
    shutil.copy(clips / "0.mp4", data)
    without = grow(data, stores, cuts)
    shutil.copy(clips / "1.mp4", data)
    complete = grow(data, stores, cuts)
    (data / "1.mp4").unlink()
    assert without.store != complete.store
    assert grow(data, stores, cuts).store == complete.store


def test_zeros_of_either_sign_are_one_cut(clips, data, tmp_path):
    shutil.copy(clips / "2.mp4", data)
    first = grow(data, tmp_path / "s", {"0": ("2.mp4", 0.0, 1.0)})
    second = grow(data, tmp_path / "s", {"0": ("2.mp4", -0.0, 1.0)})
    assert second.complete
    assert second.store == first.store


def test_a_file_of_any_time_and_inode_is_remembered(clips, data, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_SETTLED_S", 0.0)
    shutil.copy(clips / "0.mp4", data)
    os.utime(data / "0.mp4", (-5, -5))  # before 1970
    grow(data, tmp_path / "s", whole("0.mp4"))
    index = SourceIndex(tmp_path / "s", "toy")
    assert index.remembered(data / "0.mp4", signature_of(data / "0.mp4")) is not None


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_a_missing_video(clips, data, tmp_path, name):
    shutil.copy(clips / "0.mp4", data)
    cuts: Cuts = {"0": (name, None, None), "1": ("0.mp4", None, None)}
    store = grow(data, tmp_path / "s", cuts).store
    assert failed_ids(store) == {"0"}
    assert differing_sizes(FeatureStore.open(store), write(data, cuts).cuts, data) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[:0], "has no utterance"),
        (lambda table: table.assign(id="x"), "duplicate id 'x'"),
        (lambda table: table.assign(start=0.0, end=np.inf), "utterance '0' has an infinite time"),
    ],
)
def test_a_manifest_of_which_no_store_can_be_made_is_refused(
    clips, data, tmp_path, change, message
):
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    manifest = write(data, whole("0.mp4", "1.mp4"))
    manifest.table = change(manifest.table)
    settings = Settings(EncoderSpec("imagebind-tiny"), cluster=ClusterSpec(1))
    with pytest.raises(ValueError, match=f"{manifest.path}.*{message}"):
        extract(manifest, data, tmp_path / "s", settings)
    assert not (tmp_path / "s").exists()


def test_a_video_on_a_bad_part_of_the_disk_does_not_end_the_run(clips, data, tmp_path, monkeypatch):
    """A stub: no disk here returns such an error on request."""
    from cache.store import sources

    real = sources.sha256_of

    def failing(path: Path) -> str:
        if path.name == "1.mp4":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(sources, "sha256_of", failing)
    for i in range(2):
        shutil.copy(clips / f"{i}.mp4", data)
    found = sources.SourceIndex(tmp_path / "s", "toy").identify([data / "0.mp4", data / "1.mp4"])
    assert found[data / "1.mp4"] == sources.MISSING
    assert found[data / "0.mp4"].sha256
    monkeypatch.setattr(sources, "PER_FILE_ERRNOS", frozenset())
    (data / "1.mp4").unlink()
    with pytest.raises(OSError, match=r"1\.mp4"):
        sources.SourceIndex(tmp_path / "s", "toy").identify([data / "1.mp4"])
