"""Publishing many utterances from many parts: each source is opened few times, in any order."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from cache import FeatureStore, Parts
from cache.store.assemble import CHUNKS_AT_ONCE, assemble
from cache.store.chunks import ChunkedRows
from cache.store.parts import Record, Row, Source
from cache.store.store_source import StoreSource
from tests.stores import RECIPE, WIDTHS, build_store, features_of, records_of, tree_of, write_part

UTTERANCES = {f"u{i:04}": (1 + i % 4, (i % 3) * 2) for i in range(400)}
CHUNK_BYTES = 60  # 10 rows of audio, 6 of vision


@dataclass
class CountingSource:
    """A part or a store that counts how often it is read, and the files open at that time."""

    source: Source
    reads: Counter[str] = field(default_factory=Counter)
    open_files: int = 0

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def records(self) -> tuple[Record, ...]:
        return self.source.records

    @property
    def widths(self) -> dict[str, int]:
        return self.source.widths

    def read(self, modality: str, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        self.reads[modality] += 1
        self.open_files = max(self.open_files, psutil.Process().num_fds())
        return self.source.read(modality, starts, lengths)


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """The store of all utterances, in chunks of few rows."""
    monkeypatch.setattr("cache.store.assemble.CHUNK_BYTES", CHUNK_BYTES)
    return build_store(tmp_path / "expected", UTTERANCES, block=7)


def rows_of(sources: list[CountingSource]) -> list[Row]:
    found = [Row(source, i, r) for source in sources for i, r in enumerate(source.records)]
    return sorted(found, key=lambda row: row.record.id)


def read_parts(path: Path, lengths: dict[str, tuple[int, ...]], block: int) -> list[CountingSource]:
    records = records_of(lengths)
    for start in range(0, len(records), block):
        write_part(path, records[start : start + block])
    return [CountingSource(part) for part in Parts(path).read()]


def test_a_part_is_opened_once_for_many_chunks_in_any_order(tmp_path, expected):
    shuffled = random.Random(0).sample(list(UTTERANCES.items()), len(UTTERANCES))
    parts = read_parts(tmp_path / "s.zarr", dict(shuffled), block=10)
    assert len(parts) == 40
    before = psutil.Process().num_fds()
    assemble(tmp_path / "new", RECIPE, WIDTHS, {"licence": "none"}, rows_of(parts))
    assert tree_of(tmp_path / "new") == tree_of(expected)
    frames = FeatureStore.open(expected).counts
    for modality, step in (("audio", 10), ("vision", 6)):
        chunks = -(-frames[f"{modality}_frames"] // step)
        at_most = -(-chunks // CHUNKS_AT_ONCE)
        assert chunks > 50  # so one read per utterance, or per chunk, is noticed
        assert max(part.reads[modality] for part in parts) <= at_most
    assert max(part.open_files for part in parts) <= before + 5  # far fewer than parts


@pytest.mark.parametrize("compressed", [False, True])
def test_stores_and_parts_are_mixed(tmp_path, expected, compressed):
    names = random.Random(1).sample(list(UTTERANCES), len(UTTERANCES))
    stored = build_store(tmp_path / "old", {i: UTTERANCES[i] for i in names[:300]}, block=50)
    if compressed:
        _compress(stored)
    parts = read_parts(tmp_path / "s.zarr", {i: UTTERANCES[i] for i in names[300:]}, block=10)
    old = CountingSource(StoreSource(stored))
    rows = rows_of([old, *parts])
    assemble(tmp_path / "new", RECIPE, WIDTHS, {"licence": "none"}, rows)
    assert tree_of(tmp_path / "new") == tree_of(expected)


def test_the_file_of_a_chunk_is_opened_once_for_all_its_rows(expected, monkeypatch):
    opened = Counter()
    chunk = ChunkedRows.chunk

    def counting(self: ChunkedRows, index: int) -> Path:
        opened[index] += 1
        return chunk(self, index)

    monkeypatch.setattr(ChunkedRows, "chunk", counting)
    ids = random.Random(2).sample(list(UTTERANCES), len(UTTERANCES) // 2)
    features = FeatureStore.open(expected).select(ids, resident=True, modalities=["audio"])
    assert set(opened.values()) == {1}
    stored = [features_of(i, "audio", UTTERANCES[i][0], WIDTHS["audio"]) for i in ids]
    assert np.array_equal(features.values["audio"].numpy(), np.concatenate(stored))


def _compress(store: Path) -> None:
    """Write the values again with compression, as `zarr` users may do."""
    for modality in WIDTHS:
        values = zarr.open_array(store / modality / "values", mode="r")
        content, chunks = values[:], values.chunks
        group = zarr.open_group(store / modality, mode="r+")
        array = group.create_array(
            "values", shape=content.shape, chunks=chunks, dtype=content.dtype, overwrite=True
        )
        array[:] = content
    assert not ChunkedRows.open(store / "audio" / "values").raw


def test_the_rows_of_damaged_chunks_are_not_intact(expected):
    source, damaged = StoreSource(expected), {"audio": 3, "vision": 7}
    for modality, number in damaged.items():
        chunk = expected / modality / "values" / "c" / str(number) / "0"
        chunk.chmod(0o644)
        chunk.write_bytes(bytes(chunk.stat().st_size))
    lost = set()
    for modality, step in (("audio", 10), ("vision", 6)):
        offsets = FeatureStore.open(expected).offsets(modality)
        first = damaged[modality] * step
        rows = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        lost |= {
            i for i, (begin, end) in enumerate(rows) if max(begin, first) < min(end, first + step)
        }
    assert len(lost) == 6
    everything = range(len(UTTERANCES))
    assert source.intact(everything) == set(everything) - lost
    assert source.intact(lost) == set()
