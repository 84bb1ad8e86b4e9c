"""What the extraction promises about failures: retried alone, carried over, never half a store."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import dask
import numpy as np
import psutil
import pytest
from dask.distributed import Client, LocalCluster

from cache import FeatureCache, Parts, Record
from cache.store import is_published, republish
from extract import Settings, extract
from extract.__main__ import EXIT_SOME_FAILED, main
from extract.block import Utterance, extract_block
from extract.cluster import GpuNanny, Machines, gpus, slurm_cluster
from extract.engine import _job
from extract.plan import blocks, durations
from extract.progress import Tally, by_reason
from manifests import Manifest
from tests.stores import LENGTHS, RECIPE, WIDTHS, build_store, features_of, tree_of
from tests.test_extract import write_clip, write_manifest

# --- a published store whose failed rows are replaced ---------------------------------------------

ABOUT = {"licence": "none"}


def retry_part(store: Path, frames: int = 2) -> Parts:
    """The failed utterance ``bad`` came out well this time."""
    place = Parts(store.with_name(store.name + ".retry"))
    rows = {m: features_of("bad", m, frames, width) for m, width in WIDTHS.items()}
    place.write([Record("bad", "ok", "", 1.5, frames, frames)], rows, "float16")
    return place


@pytest.fixture(params=["exchange", "two renames"])
def either_way(request, monkeypatch):
    """The system can swap folders, or it cannot."""
    if request.param == "two renames":
        monkeypatch.setattr("cache.store._exchange", lambda one, other: False)


@pytest.mark.usefixtures("either_way")
def test_republished_is_as_if_nothing_had_failed(tmp_path):
    store = build_store(tmp_path / "once")
    place = retry_part(store)
    republish(store, RECIPE, WIDTHS, ABOUT, place)
    never = build_store(tmp_path / "never", {**LENGTHS, "bad": (2, 2)})
    assert tree_of(store) == tree_of(never)
    assert [path.name for path in store.parent.iterdir()] == [store.name]


@pytest.mark.usefixtures("either_way")
def test_without_parts_the_same_store_stands_again(tmp_path):
    store = build_store(tmp_path)
    before = tree_of(store)
    republish(store, RECIPE, WIDTHS, ABOUT, Parts(store.with_name("none")))
    assert tree_of(store) == before


@pytest.mark.usefixtures("either_way")
def test_a_mapped_old_store_outlives_its_replacement(tmp_path):
    store = build_store(tmp_path)
    features = FeatureCache.open(store).select(["a", "b"], resident=False)
    before = features.batch(features.lengths["audio"] * 0)["audio"].values.clone()
    republish(store, RECIPE, WIDTHS, ABOUT, retry_part(store))
    after = features.batch(features.lengths["audio"] * 0)["audio"].values
    assert before.equal(after)


@pytest.mark.parametrize(("renames", "status"), [(1, "failed"), (2, "ok")])
def test_killed_while_it_replaces_a_store(tmp_path, renames, status):
    """Dead after its first or its second rename: the next reader finds the old store or the new."""
    store = build_store(tmp_path)
    old = tree_of(store)
    retry_part(store)
    program = f"""
        import os, signal
        from pathlib import Path
        import cache.store
        from tests.stores import RECIPE, WIDTHS
        rename, left = Path.rename, {renames}
        def dying(self, target):
            global left
            rename(self, target)
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        Path.rename = dying
        cache.store._exchange = lambda one, other: False
        store = Path({str(store)!r})
        parts = cache.store.Parts(store.with_name(store.name + ".retry"))
        cache.store.republish(store, RECIPE, WIDTHS, {{"licence": "none"}}, parts)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert store.exists() == (renames == 2)
    assert FeatureCache.open(store).status["bad"] == status  # opening puts back what was aside
    assert (tree_of(store) == old) == (status == "failed")
    republish(store, RECIPE, WIDTHS, ABOUT, retry_part(store))
    assert FeatureCache.open(store).status["bad"] == "ok"
    assert [path.name for path in store.parent.iterdir()] == [store.name]


# --- retrying on the command line -----------------------------------------------------------------


def test_retry_takes_the_failed_ones_only(tmp_path, capsys):
    data = tmp_path / "data"
    (data / "v").mkdir(parents=True)
    whole = write_clip(tmp_path / "whole.mp4", 0.6)
    shutil.copy(whole, data / "v/0.mp4")
    (data / "v/1.mp4").write_text("this is no video")
    write_manifest(data, {f"u{i}": f"v/{i}.mp4" for i in range(3)})
    command = [str(data), "--root", str(tmp_path / "stores"), "--workers", "1"]
    assert main(command) == EXIT_SOME_FAILED
    assert "--retry-failed" in capsys.readouterr().out
    (store,) = (tmp_path / "stores/toy").iterdir()

    # One comes back as another clip and one is gone: only the first is looked at and has changed.
    shutil.copy(whole, data / "v/1.mp4")
    write_clip(data / "v/0.mp4", 0.9)
    kept = FeatureCache.open(store).select(["u0"]).values["vision"]
    assert main([*command, "--retry-failed"]) == EXIT_SOME_FAILED
    assert "u2: file not found" in capsys.readouterr().out
    cache = FeatureCache.open(store)
    assert list(cache.status.values()) == ["ok", "ok", "failed"]
    assert cache.select(["u0"]).values["vision"].equal(kept)
    assert cache.select(["u1"]).values["vision"].equal(kept)

    # With everything in order it is the store of a run in which nothing ever failed.
    shutil.copy(whole, data / "v/0.mp4")
    shutil.copy(whole, data / "v/2.mp4")
    assert main([*command, "--retry-failed"]) == 0
    assert main([*command[:2], str(tmp_path / "fresh"), *command[3:]]) == 0
    assert tree_of(store) == tree_of(tmp_path / "fresh/toy" / store.name)
    assert [path.name for path in store.parent.iterdir()] == [store.name]
    assert main([*command, "--retry-failed"]) == 0
    assert "nothing to decode" in capsys.readouterr().out


# --- chaos on a cluster of processes --------------------------------------------------------------

CLIPS = 12
PEST = "u07"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve good clips of different length and their manifest."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "v").mkdir()
    for i in range(CLIPS):
        write_clip(folder / f"v/{i:02}.mp4", 0.4 + 0.1 * i)
    write_manifest(folder, {f"u{i:02}": f"v/{i:02}.mp4" for i in range(CLIPS)})
    return folder


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    """The store of a run that nothing happened to."""
    settings = Settings("imagebind-tiny", workers=1)
    return extract(Manifest.load(data), data, tmp_path_factory.mktemp("stores"), settings).store


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes below a process, not the helpers of multiprocessing."""
    children = psutil.Process(pid).children(recursive=True)
    return [c for c in children if "spawn_main" in " ".join(c.cmdline())]


def started(arguments: list[str]) -> subprocess.Popen:
    """The command, under way in a process of its own."""
    command = [sys.executable, "-m", "extract", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def decoding(pid: int) -> bool:
    """Whether a worker below a process is at a video just now."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ffmpeg" in child.name():
                return True
    return False


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_worker_killed_in_the_middle_of_a_block(data, undisturbed, tmp_path):
    run = started([str(data), "--root", str(tmp_path), "--workers", "1"])
    wait_until(lambda: decoding(run.pid))
    for worker in workers_of(run.pid):
        worker.kill()
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert tree_of(tmp_path / "toy" / undisturbed.name) == tree_of(undisturbed)


def test_whole_run_killed_and_started_again(data, undisturbed, tmp_path):
    command = [str(data), "--root", str(tmp_path), "--workers", "1"]
    store = tmp_path / "toy" / undisturbed.name
    run = started(command)
    wait_until(lambda: any(Parts(store).folder.glob("*.part")))
    family = [run, *psutil.Process(run.pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    run.communicate()
    assert not is_published(store)
    again = started(command)
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "from an earlier run" in output
    assert tree_of(store) == tree_of(undisturbed)


PLAGUE = """
import os, signal
import extract.cluster
from extract.block import extract_block
def deadly(job, block):
    if any(utterance.id == "u07" for utterance in block):
        {what}
    return extract_block(job, block)
extract.cluster.extract_block = deadly
"""
"""Put into each worker before it works: one utterance is the end of whoever takes it."""


def run_with_plague(what: str, data: Path, root: Path, tmp_path: Path, **settings) -> Path:
    plague = tmp_path / "plague.py"
    plague.write_text(PLAGUE.format(what=what))
    with dask.config.set({"distributed.worker.preload": [str(plague)]}):
        return extract(
            Manifest.load(data), data, root, Settings("imagebind-tiny", workers=1, **settings)
        ).store


@pytest.mark.parametrize(
    ("what", "limit", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", None, "ended its worker 3 times: it was killed"),
        (
            "hold = [bytearray(os.urandom(1 << 20)) for _ in range(1 << 12)]",
            "1500MB",
            "ended its worker 3 times: out of memory",
        ),
    ],
    ids=["killed", "out of memory"],
)
def test_the_one_that_ends_its_worker_fails_alone(data, undisturbed, tmp_path, what, limit, reason):
    store = run_with_plague(what, data, tmp_path / "stores", tmp_path, memory_limit=limit)
    cache, good = FeatureCache.open(store), FeatureCache.open(undisturbed)
    assert {i for i, status in cache.status.items() if status != "ok"} == {PEST}
    assert reason in cache.column("error")[cache.ids.index(PEST)]
    assert "--memory-limit" in cache.column("error")[cache.ids.index(PEST)]
    others = [i for i in good.ids if i != PEST]
    for modality in good.widths:
        assert cache.select(others).values[modality].equal(good.select(others).values[modality])


def test_a_limit_below_the_encoder_is_an_error_with_a_remedy(data, tmp_path, capsys):
    command = [str(data), "--root", str(tmp_path), "--workers", "1", "--memory-limit", "110MB"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "out of memory" in error
    assert "larger --memory-limit" in error


def break_in_ten_ways(source: Path, folder: Path) -> dict[str, str]:
    """Nine bad files and a missing one; what each one's reason or status must match."""
    whole = source.read_bytes()
    cut = np.random.default_rng(0).integers(len(whole) // 10, len(whole) * 9 // 10)
    header = bytearray(whole)
    box = header.index(b"avcC")
    header[box + 4 : box + 40] = b"\xff" * 36
    large = bytearray(whole)
    size = large.index(b"avc1", large.index(b"stsd")) + 28
    large[size : size + 4] = b"\xff\xff\xff\xff"
    contents = {
        "zero": b"",
        "truncated": whole[:cut],
        "container": b"RIFF" + whole[4:40] + b"\0" * 4000,
        "text": b"this is no video\n" * 50,
        "codec": bytes(header),
        "absurd": bytes(large),
        "noise": np.random.default_rng(1).bytes(5000),
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    write_clip(folder / "no_video.mp4", 0.6, picture=False)
    write_clip(folder / "no_audio.mp4", 0.6, sound=False)
    return {
        **dict.fromkeys(contents, "failed"),
        "missing": "failed",
        "no_video": "no_video",
        "no_audio": "no_audio",
    }


def test_broken_files_of_ten_kinds_harm_no_other(data, undisturbed, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(data / "v", folder / "v")
    expected = break_in_ten_ways(data / "v/05.mp4", folder / "v")
    good = {f"u{i:02}": f"v/{i:02}.mp4" for i in range(CLIPS)}
    write_manifest(folder, {**good, **{name: f"v/{name}.mp4" for name in expected}})
    command = [str(folder), "--root", str(tmp_path / "stores"), "--workers", "1"]
    assert main(command) == EXIT_SOME_FAILED
    assert main([*command, "--allow-failures"]) == 0
    cache = FeatureCache.open(next((tmp_path / "stores/toy").iterdir()))
    statuses = {name: cache.status[name] for name in expected}
    # A decoder may make something of wrong codec parameters; it may not make nothing of it.
    assert statuses.items() >= {k: v for k, v in expected.items() if k not in LENIENT}.items()
    reasons = dict(zip(cache.ids, cache.column("error"), strict=True))
    assert all(reasons[name] for name in expected if statuses[name] != "ok")
    before = FeatureCache.open(undisturbed)
    for modality in cache.widths:
        mine, theirs = cache.select(list(good)), before.select(list(good))
        assert mine.values[modality].equal(theirs.values[modality])
    assert "file not found" in capsys.readouterr().out


LENIENT = {"codec", "absurd", "no_video"}


def test_a_file_without_a_picture_has_a_status_of_the_format(tmp_path):
    write_clip(tmp_path / "a.mp4", 0.6, picture=False)
    job = _job(tmp_path / "s.zarr", tmp_path, Settings("imagebind-tiny"))
    (record,) = extract_block(job, [Utterance("a", "a.mp4")])
    assert record.status == "no_video"


# --- plan, progress, machines ---------------------------------------------------------------------


def test_blocks_have_equal_length_and_hold_everything_once():
    utterances = [
        Utterance(f"{i:03}", f"{i % 7}.mp4", float(i), i + 1.0 + i % 5) for i in range(99)
    ]
    lengths = durations(utterances, Path("nowhere"))
    cut = blocks(utterances, lengths, workers=2, most=64)
    assert sorted(u.id for block in cut for u in block) == [u.id for u in utterances]
    limit = sum(lengths.values()) / 8
    assert all(sum(lengths[u.id] for u in block) <= limit for block in cut)
    assert 8 <= len(cut) <= 10
    assert cut == blocks(utterances[::-1], lengths, workers=2, most=64)
    assert max(map(len, blocks(utterances, lengths, workers=1, most=4))) == 4


def test_length_of_a_whole_file_is_guessed_from_its_size(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(250_000))
    rows = [Utterance("a", "a.mp4"), Utterance("b", "a.mp4", 1.0, 4.0), Utterance("c", "gone.mp4")]
    assert durations(rows, tmp_path) == {"a": 2.0, "b": 3.0, "c": 0.0}


def test_progress_in_a_line():
    tally = Tally(in_all=10, work=20.0, began=0.0)
    tally.add([Record("a", "ok", "", 4.0, 8, 8), Record("b", "failed", "why")], worked=5.0)
    assert tally.line(now=10.0) == (
        "2 of 10 utterances, 1 failed, 0.2 utterances/s, 0.4 video-s/s, 0:00:30 left"
    )


def test_failures_are_grouped_by_reason():
    failures = [("a", "gone"), ("b", "ends after 1.5 s of 3.0 s"), ("c", "ends after 2.5 s of 9 s")]
    assert by_reason(failures) == [("ends after 1.5 s of 3.0 s", ["b", "c"]), ("gone", ["a"])]


def test_dry_run_writes_nothing(data, tmp_path, capsys):
    before = sorted(data.rglob("*"))
    assert main([str(data), "--root", str(tmp_path / "s"), "--dry-run", "--workers", "2"]) == 0
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
def test_unusable_machines_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Machines(**wrong)


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus() == ["3", "5"]
    assert Machines().count("cuda") == 2
    with (
        LocalCluster(
            n_workers=3, threads_per_worker=1, worker_class=GpuNanny, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(seen.values()) == ["3", "3", "5"]


def test_slurm_profile_becomes_a_job_script():
    pytest.importorskip("dask_jobqueue", reason="the extra slurm is not installed")
    page = (Path(__file__).parent.parent / "docs/extraction.md").read_text(encoding="utf-8")
    profile = page.partition("```yaml\n")[2].partition("```")[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slurm.yaml")
        path.write_text(profile)
        with slurm_cluster(path) as cluster:
            script = cluster.job_script()
        path.write_text("queue: gpu\nflavour: mild\n")
        with pytest.raises(ValueError, match=r"docs/extraction\.md"):
            slurm_cluster(path)
    for line in ("#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "--nthreads 1", "dask_worker"):
        assert line in script
