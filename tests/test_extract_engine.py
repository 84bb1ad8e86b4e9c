"""Retried failures, blocks, progress, dry runs and the choice of workers."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from dask.distributed import Client, LocalCluster
from rich.console import Console

from cache import FeatureStore, Parts, Record
from cache.store.publish import republish
from extract import ClusterSpec, EncoderSpec, Settings
from extract.__main__ import main
from extract.cluster import GpuNanny, gpus, worker_count
from extract.engine import dry_run
from extract.job import Utterance
from extract.plan import durations, plan_blocks
from extract.progress import ProgressView, Tally, by_reason
from manifests import Manifest
from tests.stores import LENGTHS, RECIPE, WIDTHS, build_store, features_of, tree_of
from tests.test_extract import write_clip, write_manifest

# --- a published store whose failed rows are replaced ---------------------------------------------

ABOUT = {"licence": "none"}


def retry_part(store: Path, frames: int = 2) -> Parts:
    """Write a part in which the failed utterance ``bad`` succeeds; return the parts."""
    place = Parts(store.with_name(store.name + ".retry"))
    rows = {m: features_of("bad", m, frames, width) for m, width in WIDTHS.items()}
    place.write([Record("bad", "ok", "", 1.5, frames, frames)], rows, "float16")
    return place


@pytest.fixture(params=["exchange", "two renames"])
def swap_or_rename(request, monkeypatch):
    """Replace a store by swapping folders, or by two renames where that is not supported."""
    if request.param == "two renames":
        monkeypatch.setattr("cache.store.publish.exchange", lambda one, other: False)


@pytest.mark.usefixtures("swap_or_rename")
def test_republished_store_equals_one_without_failures(tmp_path):
    store = build_store(tmp_path / "once")
    place = retry_part(store)
    republish(store, RECIPE, WIDTHS, ABOUT, place)
    never = build_store(tmp_path / "never", {**LENGTHS, "bad": (2, 2)})
    assert tree_of(store) == tree_of(never)
    assert [path.name for path in store.parent.iterdir()] == [store.name]


@pytest.mark.usefixtures("swap_or_rename")
def test_republishing_without_parts_changes_nothing(tmp_path):
    store = build_store(tmp_path)
    before = tree_of(store)
    republish(store, RECIPE, WIDTHS, ABOUT, Parts(store.with_name("none")))
    assert tree_of(store) == before


@pytest.mark.usefixtures("swap_or_rename")
def test_a_mapped_store_stays_readable_after_its_replacement(tmp_path):
    store = build_store(tmp_path)
    features = FeatureStore.open(store).select(["a", "b"], resident=False)
    before = features.batch(features.lengths["audio"] * 0)["audio"].values.clone()
    republish(store, RECIPE, WIDTHS, ABOUT, retry_part(store))
    after = features.batch(features.lengths["audio"] * 0)["audio"].values
    assert before.equal(after)


@pytest.mark.parametrize(("renames", "status"), [(1, "failed"), (2, "ok")])
def test_killed_while_replacing_a_store(tmp_path, renames, status):
    """Killed after the first or second rename: the next reader finds the old or the new store."""
    store = build_store(tmp_path)
    old = tree_of(store)
    retry_part(store)
    program = f"""
        import os, signal
        from pathlib import Path
        import cache.store.publish
        from tests.stores import RECIPE, WIDTHS
        rename, left = Path.rename, {renames}
        def rename_and_die(self, target):
            global left
            rename(self, target)
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        Path.rename = rename_and_die
        cache.store.publish.exchange = lambda one, other: False
        store = Path({str(store)!r})
        parts = cache.store.publish.Parts(store.with_name(store.name + ".retry"))
        cache.store.publish.republish(store, RECIPE, WIDTHS, {{"licence": "none"}}, parts)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert store.exists() == (renames == 2)
    assert FeatureStore.open(store).status["bad"] == status  # opening restores the old store
    assert (tree_of(store) == old) == (status == "failed")
    republish(store, RECIPE, WIDTHS, ABOUT, retry_part(store))
    assert FeatureStore.open(store).status["bad"] == "ok"
    assert [path.name for path in store.parent.iterdir()] == [store.name]


# --- plan, progress, machines ---------------------------------------------------------------------


def test_blocks_have_equal_length_except_the_first_and_cover_all_utterances(monkeypatch):
    utterances = [
        Utterance(f"{i:03}", f"{i % 7}.mp4", float(i), i + 1.0 + i % 5) for i in range(99)
    ]
    lengths = durations(utterances, Path("nowhere"))
    cut = plan_blocks(utterances, lengths, workers=2)
    assert sorted(u.id for block in cut for u in block) == [u.id for u in utterances]
    limit = sum(lengths.values()) / 8
    filled = [sum(lengths[u.id] for u in block) for block in cut]
    assert max(filled[:2]) <= limit / 4
    assert limit / 2 < max(filled) <= limit
    assert 9 <= len(cut) <= 11
    assert cut == plan_blocks(utterances[::-1], lengths, workers=2)
    monkeypatch.setattr("extract.plan.MAX_BLOCK_UTTERANCES", 4)
    assert max(map(len, plan_blocks(utterances, lengths, workers=1))) == 4


def test_length_of_a_whole_file_is_estimated_from_its_size(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(250_000))
    rows = [Utterance("a", "a.mp4"), Utterance("b", "a.mp4", 1.0, 4.0), Utterance("c", "gone.mp4")]
    assert durations(rows, tmp_path) == {"a": 2.0, "b": 3.0, "c": 0.0}


def test_progress_line():
    tally = Tally(total=10, total_s=20.0, began=0.0)
    tally.add([Record("a", "ok", "", 4.0, 8, 8), Record("b", "failed", "why")], seconds=5.0)
    assert tally.line(now=10.0) == (
        "2 of 10 utterances, 1 failed, 0.2 utterances/s, 0.4 video-s/s, 0:00:30 left"
    )


def test_progress_line_counts_stages():
    tally = Tally(total=10, total_s=20.0, began=0.0)
    tally.reached("decoded", ["a", "b"])
    tally.reached("decoded", ["b"])  # again, after its worker was lost
    tally.reached("encoded", ["a"])
    assert tally.line(now=10.0) == "0 of 10 utterances, 2 decoded, 1 encoded, 0 written"


def test_progress_without_a_terminal_is_a_line_per_interval(monkeypatch, capsys):
    tally = Tally(total=10, total_s=20.0)
    monkeypatch.setattr("extract.progress.EVERY_S", 1e9)
    with ProgressView(Console(file=io.StringIO())) as view:
        view.show(tally)
        assert capsys.readouterr().out == ""
        monkeypatch.setattr("extract.progress.EVERY_S", 0.0)
        view.show(tally)
        assert capsys.readouterr().out == "0 of 10 utterances\n"


def test_failures_are_grouped_by_reason():
    failures = [("a", "gone"), ("b", "ends after 1.5 s of 3.0 s"), ("c", "ends after 2.5 s of 9 s")]
    assert by_reason(failures) == [("ends after 1.5 s of 3.0 s", ["b", "c"]), ("gone", ["a"])]


def test_dry_run_writes_nothing(tmp_path, capsys):
    data = tmp_path / "data"
    clip = write_clip(tmp_path / "0.mp4", 0.6)
    (data / "v").mkdir(parents=True)
    for i in range(3):
        (data / f"v/{i}.mp4").hardlink_to(clip)
    write_manifest(data, {f"u{i}": f"v/{i % 3}.mp4" for i in range(12)})
    before = sorted(data.rglob("*"))
    settings = Settings(EncoderSpec("imagebind-tiny"), cluster=ClusterSpec(workers=2))
    estimate = dry_run(Manifest.load(data), data, tmp_path / "s", settings)
    assert (estimate.utterances, estimate.workers) == (12, 2)
    assert estimate.seconds == pytest.approx(12 * 0.6, rel=0.1)
    assert 4 <= estimate.blocks <= 12
    assert estimate.bytes == pytest.approx(12 * 2 * 64 * 2, rel=0.2)  # rows, both widths, float16
    assert 0 < estimate.took < 60
    remote = Settings(
        EncoderSpec("imagebind-tiny", device="cuda"),
        cluster=ClusterSpec(workers=2, scheduler="tcp://nowhere:8786"),
    )
    assert dry_run(Manifest.load(data), data, tmp_path / "s", remote).utterances == 12
    assert main([str(data), "--stores", str(tmp_path / "s"), "--dry-run", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "Nothing was written" in out
    assert "12" in out
    assert not (tmp_path / "s").exists()
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "at least 1"),
        ({"memory_limit": "plenty"}, "write 8GB"),
        ({"memory_limit": "1MB"}, "no worker"),
        ({"scheduler": "tcp://a:1", "slurm": Path("p")}, "not both"),
    ],
)
def test_invalid_cluster_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClusterSpec(**wrong)


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus() == ["3", "5"]
    assert worker_count(ClusterSpec(), "cuda") == 2
    with (
        LocalCluster(
            n_workers=3, threads_per_worker=1, worker_class=GpuNanny, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["3", "3", "5"]


def test_default_folder_of_videos_is_the_manifests(tmp_path, monkeypatch, capsys):
    """A bare name is a dataset of ``data/``, even if a folder of that name exists here."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "toy"
    (folder / "v").mkdir(parents=True)
    (tmp_path / "toy").mkdir()
    write_clip(folder / "v/0.mp4", 0.5)
    write_manifest(folder, {"u0": "v/0.mp4"})
    assert main(["toy", "--dry-run"]) == 0
    assert "Nothing was written." in capsys.readouterr().out


def test_a_dry_run_restores_the_number_of_threads(tmp_path, capsys):
    write_clip(tmp_path / "0.mp4", 0.5)
    write_manifest(tmp_path, {"u0": "0.mp4"})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert main([str(tmp_path), "--dry-run", "--stores", str(tmp_path / "stores")]) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
