"""The extraction benchmark: a tiny run of all competitors writes its reports."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import extract


@pytest.mark.slow
def test_a_tiny_run_writes_table_plot_and_ratios(tmp_path, capsys):
    encoder = ["--encoder", "imagebind-tiny", "--precision", "bf16"]
    options = ["--size", "tiny", "--runs", "1", "--out", str(tmp_path)]
    assert extract.main([*options, *encoder]) == 0
    result = json.loads((tmp_path / "extract.json").read_text())
    rows = {(row["material"], row["name"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 2 * len(extract.TITLES)
    assert all(row["frames"] == 4 for row in rows.values())  # two utterances of a second
    assert all(row["seconds"] > 0 for row in rows.values())
    ratios = result["ratios"]
    assert ratios.keys() >= {"vs_larger_floor", "vs_sum_of_floors", "naive_vs_ours"}
    assert ratios["vs_larger_floor"] > ratios["vs_sum_of_floors"] > 0
    table = (tmp_path / "extract.md").read_text()
    assert table.strip() == capsys.readouterr().out.strip()
    plot = ElementTree.fromstring((tmp_path / "extract.svg").read_text())
    assert len(plot.findall("{*}rect")) == len(rows)
