"""Reading: resident and mapped alike, in other processes and threads, in a reproducible order."""

import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.isolated import private_bytes
from cache import Features, FeatureStore, Parts, publish
from cache.store.chunks import ChunkedRows
from tests.stores import RECIPE, WITH_TEXT, build_store, features_of, records_of
from train.batch_order import epoch_batches

LENGTHS = {f"u{i:03}": (i % 7, (3 * i) % 5) for i in range(120)}
WIDTHS = {"audio": 1024, "vision": 1024}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store whose arrays have many chunks of whole pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.store.assemble.CHUNK_BYTES", 32 * 2048)
        return build_store(tmp_path_factory.mktemp("store"), LENGTHS, WIDTHS)


def total_of(features: Features, indices: list[int]) -> float:
    batch = features.batch(torch.tensor(indices))
    return sum(float(packed.values.double().sum()) for packed in batch.values())


def test_mapped_equals_resident(store):
    cache = FeatureStore.open(store)
    ids = [i for i in reversed(cache.ids) if i[-1] != "5"]
    resident, mapped = cache.select(ids, resident=True), cache.select(ids, resident=False)
    assert resident.resident
    assert not mapped.resident
    assert len(mapped.values["audio"]) == cache.counts["audio_frames"]
    for indices in torch.randperm(len(ids)).split(16):
        ours, theirs = mapped.batch(indices), resident.batch(indices)
        for m in WIDTHS:
            assert torch.equal(ours[m].values, theirs[m].values)
            assert torch.equal(ours[m].lengths, theirs[m].lengths)
    i = ids[7]
    frames = LENGTHS[i][0]
    expected = features_of(i, "audio", frames, WIDTHS["audio"])
    assert np.array_equal(mapped.batch(torch.tensor([7]))["audio"].values.numpy(), expected)


def test_choice_follows_the_size_and_is_logged(store, caplog, monkeypatch):
    cache = FeatureStore.open(store)
    with caplog.at_level("INFO", "cache"):
        assert cache.select(cache.ids).resident
        assert "loaded into memory" in caplog.text

        class Full:
            available = 1000

        monkeypatch.setattr(psutil, "virtual_memory", Full)
        assert not cache.select(cache.ids).resident
        assert "mapped from the files" in caplog.text


def test_writing_to_a_mapped_tensor_never_reaches_the_store(store):
    cache = FeatureStore.open(store)
    cache.select(cache.ids, resident=False).values["audio"].fill_(7)
    again = cache.select(cache.ids, resident=False).values["audio"]
    assert not (again == 7).all()


@pytest.mark.parametrize("harm", ["short", "missing"])
@pytest.mark.parametrize("resident", [True, False])
def test_damaged_chunk_is_an_error_not_a_crash(tmp_path, harm, resident):
    path = build_store(tmp_path, LENGTHS, WIDTHS) / "audio" / "values" / "c" / "0" / "0"
    path.chmod(0o644)
    if harm == "short":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    cache = FeatureStore.open(path.parents[4])
    with pytest.raises(ValueError, match="cache verify"):
        cache.select(cache.ids, resident)


def test_chunks_that_are_no_pages_are_read_instead(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.store.assemble.CHUNK_BYTES", 100)
        path = build_store(tmp_path, LENGTHS, {"audio": 3, "vision": 5})
    assert ChunkedRows.open(path / "audio" / "values").map() is None
    cache = FeatureStore.open(path)
    assert cache.select(cache.ids, resident=False).resident


def test_only_the_modalities_asked_for_are_read(tmp_path):
    lengths = {"a": (2, 2, 5), "b": (3, 3, 0)}
    store = build_store(tmp_path, lengths, WITH_TEXT)
    (store / "text/values/c/0/0").unlink()
    cache = FeatureStore.open(store)
    features = cache.select(["b", "a"], modalities=["audio", "vision"])
    assert list(features.values) == ["audio", "vision"]
    assert features.starts["audio"] is features.starts["vision"]  # one index for both
    features = pickle.loads(pickle.dumps(features))
    batch = features.batch(torch.tensor([1]))
    assert np.array_equal(batch["vision"].values.numpy(), features_of("a", "vision", 2, 5))
    with pytest.raises(ValueError, match="cache verify"):
        cache.select(["a"])
    with pytest.raises(ValueError, match="has audio, vision, text features, not smell"):
        cache.select(["a"], modalities=["smell"])


# --- a store ten times larger than memory ---------------------------------------------------------

LARGE = {f"u{i:03}": (150, 150) for i in range(500)}
"""150 frames of both modalities each: 307 MB."""


def _build_large(root: Path) -> None:
    records = records_of(LARGE)
    store = root / "toy" / RECIPE.store_name
    for start in range(0, len(records), 50):
        block = records[start : start + 50]
        # Row k of utterance i holds the number i everywhere: a store of known sums.
        numbers = np.repeat(np.arange(start, start + 50, dtype=np.float32), 150)
        rows = np.broadcast_to(numbers[:, None], (len(numbers), 1024))
        Parts(store).write(block, dict.fromkeys(WIDTHS, rows), "float16")
    publish(store, RECIPE, WIDTHS, {}, list(LARGE))


def _read_epoch(store: Path, said) -> None:
    """Every batch of an epoch, padded as training pads it; the most private memory it took."""
    this = psutil.Process()
    before, peak, total = private_bytes(this), 0, 0.0
    torch.set_num_threads(1)
    cache = FeatureStore.open(store)
    features = cache.select(cache.ids)
    for indices in epoch_batches(features.lengths["audio"], 4, seed=0, epoch=1):
        batch = features.batch(indices)
        x_BTD, _ = batch["audio"].padded()
        heard, seen = x_BTD[:, 0, 0], batch["vision"].values[::150, -1]
        total += float(heard.double().sum() + seen.double().sum())
        peak = max(peak, private_bytes(this) - before)
    said.send((features.resident, total, peak))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports private memory")
def test_an_epoch_of_a_store_ten_times_larger_than_memory(tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")
    builder = fork.Process(target=_build_large, args=(tmp_path,))
    builder.start()
    builder.join()
    store = tmp_path / "toy" / RECIPE.store_name

    class Small:
        available = 30 << 20

    monkeypatch.setattr(psutil, "virtual_memory", Small)
    here, there = fork.Pipe()
    reader = fork.Process(target=_read_epoch, args=(store, there))
    reader.start()
    there.close()
    resident, total, peak = here.recv()
    reader.join()
    assert not resident
    assert total == 2 * sum(range(len(LARGE)))  # every utterance, of both modalities
    assert peak < Small.available


def test_opening_reads_metadata_only(store, monkeypatch):
    opened = []
    monkeypatch.setattr("cache.store.table.read_column", opened.append)
    assert FeatureStore.open(store).counts["utterances"] == len(LENGTHS)
    assert opened == []


def _in_process(features: Features, cache: FeatureStore, queue) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    own = cache.select(features.ids, resident=False)
    queue.put((total_of(features, [3, 1, 50]), total_of(own, [3, 1, 50])))


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("resident", [True, False])
def test_other_processes_read_the_same(store, method, resident):
    cache = FeatureStore.open(store)
    features = cache.select(cache.ids, resident)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_in_process, args=(features, cache, queue))
    process.start()
    expected = total_of(features, [3, 1, 50])
    try:
        assert queue.get(timeout=60) == (expected, expected)
    finally:
        process.kill()
        process.join()


def test_pickle_carries_the_path_not_the_values(store):
    cache = FeatureStore.open(store)
    for resident in (True, False):
        data = pickle.dumps(cache.select(cache.ids, resident))
        assert len(data) < 5000
        assert pickle.loads(data).resident == resident


def test_threads_read_the_same(store):
    features = FeatureStore.open(store).select(sorted(LENGTHS), resident=False)
    wanted = [torch.randperm(len(LENGTHS))[:9].tolist() for _ in range(200)]
    alone = [total_of(features, indices) for indices in wanted]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda indices: total_of(features, indices), wanted)) == alone


# --- order ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=200),
    batch=st.integers(1, 40),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
    ranks=st.integers(1, 4),
)
def test_every_utterance_once_over_all_ranks(lengths, batch, seed, epoch, ranks):
    sizes = torch.tensor(lengths)
    whole = epoch_batches(sizes, batch, seed, epoch)
    shares = [epoch_batches(sizes, batch, seed, epoch, rank=r, ranks=ranks) for r in range(ranks)]
    assert sorted(torch.cat(whole).tolist()) == list(range(len(lengths)))
    for step, together in enumerate(whole):
        assert len(together) <= batch
        parts = torch.cat([share[step] for share in shares])
        assert sorted(parts.tolist()) == sorted(together.tolist())


def test_order_depends_on_seed_and_epoch_only():
    lengths = torch.randint(1, 50, (500,))
    first = epoch_batches(lengths, 16, seed=1, epoch=1)
    torch.manual_seed(123)
    torch.rand(7)
    again = epoch_batches(lengths, 16, seed=1, epoch=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in ((1, 2), (2, 1)):
        assert not torch.equal(torch.cat(epoch_batches(lengths, 16, *other)), torch.cat(first))


def test_bucketed_batches_pad_little():
    lengths = torch.distributions.LogNormal(2.2, 0.8).sample((20000,)).ceil().long()
    batches = epoch_batches(lengths, 64, seed=0, epoch=0)
    computed = sum(int(lengths[b].max()) * len(b) for b in batches)
    assert computed / int(lengths.sum()) < 1.2
