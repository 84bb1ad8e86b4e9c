"""The benchmark of label generation: its metrics are right, and a tiny run writes its report."""

import json

import pytest
import torch

from benchmarks import sclg


def test_recall_counts_the_true_neighbours_that_were_found():
    true = torch.tensor([[1, 2], [0, 2], [0, 1]])
    found = torch.tensor([[2, 1], [2, 9], [8, 9]])
    assert sclg.recall(found, true) == pytest.approx(0.5)


def test_exact_search_finds_all():
    seconds, recall = sclg.search(200, "exact", threads=1, runs=1)
    assert seconds > 0
    assert recall == 1.0


def test_exponent_is_the_slope_between_smallest_and_largest():
    rows = [{"n": n, "seconds": 3e-9 * n**2, "memory": 5 * n} for n in (100, 1000, 10_000)]
    assert sclg.exponent(rows, "seconds") == pytest.approx(2)
    assert sclg.exponent(rows, "memory") == pytest.approx(1)


def test_ratios_use_the_search_that_a_run_would_choose():
    rows = [
        {"n": n, "index": index, "seconds": seconds, "memory": n, "recall": recall}
        for n, index, seconds, recall in (
            (1300, "exact", 1.0, 1.0),
            (16326, "exact", 100.0, 1.0),
            (100_000, "exact", 4000.0, 1.0),
            (16326, "faiss", 70.0, 0.99),
            (100_000, "faiss", 500.0, 0.97),
        )
    ]
    ratios = sclg.ratios_of(rows, {"bert_base": 40_000.0, "minilm": 8000.0})
    assert ratios["share_of_epoch_16k"] == pytest.approx(4 * 100 / 40_000)
    assert ratios["share_of_epoch_16k_minilm"] == pytest.approx(4 * 100 / 8000)
    assert ratios["recall_ann"] == 0.97
    chosen = [row for row in rows if (row["n"] > 60_000) == (row["index"] == "faiss")]
    assert ratios["growth_exponent"] == pytest.approx(sclg.exponent(chosen, "seconds"))
    assert ratios["memory_growth_exponent"] == pytest.approx(1)


@pytest.mark.slow
def test_a_tiny_run_writes_its_report(tmp_path, capsys):
    pytest.importorskip("faiss")
    assert sclg.main(["--size", "tiny", "--runs", "1", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "sclg.json").read_text(encoding="utf-8"))
    assert {"share_of_epoch_16k", "recall_ann", "growth_exponent"} <= set(found["ratios"])
    assert [(row["n"], row["index"]) for row in found["rows"]] == sclg.SIZES["tiny"][0]
    assert "faiss" in capsys.readouterr().out
