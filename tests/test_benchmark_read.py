"""The reading benchmark: all stores return the same batches, and a tiny run writes its reports."""

import json
import os
import xml.etree.ElementTree as ElementTree

import numpy as np
import psutil
import pytest
import torch

from benchmarks import isolated, read, report
from benchmarks.generate import generate
from benchmarks.stores import COMPETITORS
from cache import MODALITIES, FeatureStore

UTTERANCES = 20


@pytest.fixture(scope="module", autouse=True)
def _libraries_imported_once():
    isolated.prepare(read.WORK)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("stores"), UTTERANCES)


def allocate(megabytes):
    return int(np.ones(megabytes << 20, np.uint8).sum(dtype=np.int64))


def fail():
    raise ValueError("on purpose")


@pytest.mark.parametrize("name", COMPETITORS)
def test_every_competitor_returns_the_same_batches(name, store, tmp_path):
    cache = FeatureStore.open(store)
    ours = cache.select(cache.ids, resident=True)
    COMPETITORS[name].write(ours, tmp_path)
    theirs = COMPETITORS[name](store, tmp_path)
    indices = torch.tensor([7, 0, UTTERANCES - 1, 7])
    (planned,) = theirs.plan([indices])
    packed, padded = theirs.packed(planned), theirs.padded(planned)
    for m in MODALITIES:
        expected = torch.cat([ours.batch(torch.tensor([i]))[m].values for i in indices.tolist()])
        assert packed[m].values.dtype == torch.float16
        assert torch.equal(packed[m].values, expected)
        assert torch.equal(packed[m].lengths, ours.lengths[m][indices])
        x_BTD, mask_BT = padded[m]
        assert torch.equal(x_BTD[mask_BT], expected)
        assert torch.equal(mask_BT.sum(1), packed[m].lengths)
        assert not x_BTD[~mask_BT].any()


def test_generated_lengths_are_those_of_the_dataset(tmp_path):
    cache = FeatureStore.open(generate(tmp_path, 400))
    lengths = np.diff(cache.offsets("vision"))
    assert np.median(lengths) == pytest.approx(9, abs=1)
    assert lengths.mean() == pytest.approx(15, abs=3)


def test_padding_counts_computed_rows_over_real_ones():
    lengths = torch.tensor([1, 3, 2, 2])
    assert read.padding(lengths, [torch.tensor([0, 1]), torch.tensor([2, 3])]) == 10 / 8


def test_random_batches_take_every_utterance_once():
    batches = read.random_batches(150, epoch=3)
    assert sorted(torch.cat(batches).tolist()) == list(range(150))
    assert [len(batch) for batch in batches] == [64, 64, 22]


def test_memory_is_measured_in_a_separate_process():
    result, memory = isolated.run_isolated(allocate, 64)
    assert result == 64 << 20
    assert 60 << 20 < memory < 160 << 20


def test_a_process_that_ends_while_its_memory_is_read_has_a_result(monkeypatch):
    # psutil raises this when the process ends after it was asked for its result.
    def late(process):
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(isolated, "private_bytes", late)
    assert isolated.run_isolated(allocate, 1)[0] == 1 << 20


def test_a_failed_process_is_an_error():
    with pytest.raises(RuntimeError, match="on purpose"):
        isolated.run_isolated(fail)


def test_a_killed_process_is_an_error():
    with pytest.raises(RuntimeError, match="died"):
        isolated.run_isolated(os._exit, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (123456, "123,000"), (0.01234, "0.0123"), (1.999, "2.00")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert report.number(value) == text


@pytest.mark.slow
def test_a_tiny_run_writes_table_plot_and_ratios(tmp_path, capsys):
    options = ["--size", "tiny", "--runs", "1", "--seconds", "0.01", "--out", str(tmp_path)]
    assert read.main(options) == 0
    result = json.loads((tmp_path / "read.json").read_text())
    assert {row["name"] for row in result["rows"]} == set(COMPETITORS)
    assert result["ratios"].keys() >= {
        "resident_vs_gather",
        "resident_vs_lmdb_pickle",
        "mapped_vs_gather",
        "mapped_vs_lmdb_pickle",
        "first_batch_mapped_s",
        "load_vs_memcpy",
        "padding_bucketed",
    }
    assert all(value > 0 for value in result["ratios"].values())
    assert result["machine"]["threads"] == 1
    table = (tmp_path / "read.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    plot = ElementTree.fromstring((tmp_path / "read.svg").read_text())
    assert len(plot.findall("{*}rect")) == len(COMPETITORS)


@pytest.mark.slow
def test_growth_compares_three_sizes(tmp_path, capsys):
    assert read.main(["--size", "tiny", "--growth", "--runs", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "read-growth.json").read_text())
    assert [row["utterances"] for row in result["rows"]] == [128, 512, 2048]
    assert "first batch ms" in capsys.readouterr().out
