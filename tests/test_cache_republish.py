"""A published store replaced: whole rows carried over, readers never between the two."""

import errno
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from cache import FeatureStore, Parts, Record, find
from cache.reader import ReplacedError
from cache.share.verify import verify
from cache.store.publish import StoreSource, published_in, replace, republish
from tests.stores import (
    LENGTHS,
    RECIPE,
    WIDTHS,
    WITH_TEXT,
    build_store,
    records_of,
    tree_of,
    write_part,
)

fork = multiprocessing.get_context("fork")
ABOUT = {"licence": "none"}
TEXT_LENGTHS = {i: (*frames, n) for n, (i, frames) in enumerate(LENGTHS.items())}


@pytest.fixture(params=["swap", "two renames"])
def either_way(request, monkeypatch):
    """The system can swap folders, or it cannot."""
    if request.param == "two renames":
        monkeypatch.setattr("cache.store.publish.exchange", lambda one, other: False)


def retried(store: Path) -> Parts:
    return Parts(store.with_name(f"{store.name}.retry"))


def retry(store: Path, widths: dict[str, int] = WIDTHS) -> None:
    """The failed utterance ``bad`` came out well this time."""
    record = Record("bad", "ok", "", 1.5, 2, 2, 3 if "text" in widths else 0)
    write_part(store.with_name(f"{store.name}.retry"), [record], widths)


def test_all_modalities_of_a_store_are_carried_over(tmp_path):
    once = {**TEXT_LENGTHS, "bad": (0, 0, 0)}
    store = build_store(tmp_path / "once", once, WITH_TEXT)
    assert list(StoreSource(store).records) == sorted(records_of(once), key=lambda r: r.id)
    retry(store, WITH_TEXT)
    republish(store, RECIPE, WITH_TEXT, ABOUT, retried(store))
    never = build_store(tmp_path / "never", {**once, "bad": (2, 2, 3)}, WITH_TEXT)
    assert tree_of(store) == tree_of(never)


def test_text_that_the_parts_lack_is_not_lost(tmp_path):
    store = build_store(tmp_path, TEXT_LENGTHS, WITH_TEXT)
    before = tree_of(store)
    retry(store)
    with pytest.raises(ValueError, match="also has text features"):
        republish(store, RECIPE, WIDTHS, ABOUT, retried(store))
    assert tree_of(store) == before


def _republish_limited(store: Path, said) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        republish(store, RECIPE, WIDTHS, ABOUT, retried(store))
    except ValueError as error:
        said.put(str(error))


def test_no_room_is_a_clear_error_and_the_store_stands(tmp_path):
    store = build_store(tmp_path / "full")
    before = tree_of(store)
    retry(store)
    said = fork.Queue()
    process = fork.Process(target=_republish_limited, args=(store, said))
    process.start()
    message = said.get(timeout=120)
    process.join()
    assert "larger than the system allows" in message
    assert "the store is unchanged, retried utterances are kept" in message
    assert "\n" not in message
    assert tree_of(store) == before
    assert [path.suffix for path in retried(store).folder.iterdir()] == [".part"]
    republish(store, RECIPE, WIDTHS, ABOUT, retried(store))
    assert tree_of(store) == tree_of(build_store(tmp_path / "calm", {**LENGTHS, "bad": (2, 2)}))
    assert list(store.parent.iterdir()) == [store]


@pytest.mark.usefixtures("either_way")
def test_a_swap_that_is_refused_leaves_the_old_store(tmp_path, monkeypatch):
    store = build_store(tmp_path)
    before = tree_of(store)
    retry(store)

    def refused(self, _target):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr("cache.store.publish.exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(ValueError, match="Permission denied"):
        republish(store, RECIPE, WIDTHS, ABOUT, retried(store))
    assert tree_of(store) == before


def _republish_again_and_again(store: Path, turns, slow: bool) -> None:
    """Replace a store by its like, by two renames with a pause between them where ``slow``."""
    if slow:
        rename = Path.rename
        Path.rename = lambda self, to: (rename(self, to), time.sleep(0.004))[0]  # type: ignore
    import cache.store.publish

    cache.store.publish.exchange = lambda one, other: False
    while turns.value:
        republish(store, RECIPE, WIDTHS, ABOUT, Parts(store.with_name("none")))
        turns.value -= 1
        time.sleep(0.01)


@pytest.mark.parametrize("slow", [False, True])
def test_finding_never_misses_a_store_that_is_being_replaced(tmp_path, slow):
    store = build_store(tmp_path)
    turns = fork.Value("i", 12, lock=False)
    writer = fork.Process(target=_republish_again_and_again, args=(store, turns, slow))
    writer.start()
    try:
        looks = 0
        while writer.is_alive():
            assert find("toy", tmp_path) == store
            looks += 1
    finally:
        writer.kill()
        writer.join()
    assert turns.value == 0
    assert looks > 12
    assert verify(store) == []


def test_reading_never_mixes_two_stores(tmp_path, caplog):
    """Two stores of the same ids and shapes whose values tell which one they are from."""
    ids = [f"u{i:02}" for i in range(30)]
    store = build_store(tmp_path / "here", dict.fromkeys(ids, (2, 2)))
    other = build_store(tmp_path / "there", dict.fromkeys(ids, (3, 3)))
    spare = store.with_name("spare")
    expected = {}
    for path, rows in ((store, 60), (other, 90)):
        expected[rows] = FeatureStore.open(path).select(ids).values
    other.rename(spare)
    stop, draw = fork.Event(), random.Random(0)

    def swap() -> None:
        import cache.store.publish

        while not stop.is_set():
            os.utime(spare / "checksums.json")  # an old store never comes back: this is a new one
            assert cache.store.publish.exchange(spare, store)
            time.sleep(draw.uniform(0, 0.01))

    writer = fork.Process(target=swap)
    writer.start()
    seen = set()
    try:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            features = FeatureStore.open(store).select(ids)
            rows = len(features.values["audio"])
            assert all(torch.equal(features.values[m], expected[rows][m]) for m in WIDTHS)
            seen.add(rows)
    finally:
        stop.set()
        writer.join()
    assert seen == {60, 90}
    assert "was replaced by another run; reading the new store" in caplog.text


@pytest.mark.usefixtures("either_way")
def test_a_store_opened_before_its_replacement(tmp_path):
    store = build_store(tmp_path)
    cache = FeatureStore.open(store)
    features = cache.select(["a"], resident=False)
    before = features.batch(torch.tensor([0]))["audio"].values
    retry(store)
    republish(store, RECIPE, WIDTHS, ABOUT, retried(store))
    with pytest.raises(ReplacedError, match="open it again"):
        cache.column("status")
    both = cache.select(["a", "bad"])
    assert both.lengths["audio"].tolist() == [4, 2]
    assert both.batch(torch.tensor([0]))["audio"].values.equal(before)
    assert features.batch(torch.tensor([0]))["audio"].values.equal(before)


@pytest.mark.usefixtures("either_way")
def test_what_a_killed_run_leaves_is_in_nobodys_way(tmp_path):
    store = build_store(tmp_path)
    retry(store)
    folder = retried(store).folder
    (folder / "assembling.lock").touch()  # a lock file that no process holds
    (folder / "assembling-0").mkdir()
    (folder / "assembling-0" / "zarr.json").touch()
    aside = store.with_name(f".{store.name}.aside")
    aside.mkdir()
    (aside / "zarr.json").touch()  # an old store that was being deleted
    assert published_in(store.parent) == [store]
    republish(store, RECIPE, WIDTHS, ABOUT, retried(store))
    assert FeatureStore.open(store).status["bad"] == "ok"
    assert list(store.parent.iterdir()) == [store]


def test_replacing_a_damaged_store_is_possible(tmp_path):
    store, good = build_store(tmp_path / "here"), build_store(tmp_path / "there")
    path = store / "audio/values/c/0/0"
    path.unlink()
    replace(store, good)
    assert verify(store) == []
    assert not good.exists()
