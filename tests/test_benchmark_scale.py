"""The benchmark of large stores: its ratios are right, and a tiny run writes its report."""

import json
from dataclasses import replace

import pytest

from benchmarks import scale


def test_ratios_compare_the_sizes_and_the_orders():
    rows = [
        {"step": step, "utterances": n, "seconds": s, "cpu_seconds": s / 2, "memory": m}
        for step, n, s, m in (
            ("publish_sorted", 100, 1.0, 10),
            ("publish_shuffled", 100, 2.0, 10),
            ("publish_sorted", 400, 4.0, 20),
            ("publish_shuffled", 400, 6.0, 30),
        )
    ]
    ratios = scale.ratios_of(rows)
    assert ratios["shuffled_vs_sorted_seconds"] == pytest.approx(1.5)
    assert ratios["publish_sorted_cpu_seconds_growth"] == pytest.approx(4)
    assert ratios["publish_shuffled_cpu_seconds_growth"] == pytest.approx(3)
    assert ratios["publish_sorted_memory_growth"] == pytest.approx(2)


def test_both_orders_have_the_same_utterances(tmp_path):
    dataset = scale.Dataset(tmp_path, utterances=600, stores=1, width=4)
    dataset = replace(dataset, sources=scale.digest_of_records(dataset))
    for step in (scale.write_sorted_parts, scale.publish_sorted, scale.write_shuffled_parts):
        step(dataset)
    sorted_names = {path.name for path in dataset.store("sorted").parent.iterdir()}
    assert sorted_names == {dataset.store("sorted").name}
    assert len(list(dataset.store("stores").parent.glob("*.parts/*.part"))) == 3
    scale.publish_shuffled(dataset)  # raises unless the store is the same


def test_a_tiny_run_writes_its_report(tmp_path, capsys):
    options = ["--size", "tiny", "--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    assert scale.main(options) == 0
    result = json.loads((tmp_path / "out" / "scale.json").read_text(encoding="utf-8"))
    steps = [step.__name__ for step in scale.STEPS]
    assert {"publish_shuffled", "grow_by_a_hundredth", "find_among_small_stores"} < set(steps)
    assert [(row["step"], row["utterances"]) for row in result["rows"]] == [
        (step, n) for n in (50, 200) for step in steps
    ]
    assert result["ratios"]["shuffled_vs_sorted_seconds"] > 0
    table = (tmp_path / "out" / "scale.md").read_text(encoding="utf-8")
    assert table.strip() == capsys.readouterr().out.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing is left
