"""Stores and runs of release 0.1.0 are opened, verified, resumed and evaluated, never rewritten.

``made_by_0_1_0/`` holds a dataset, its store, two finished runs of a study, one more finished run
and one that was killed, all by the code of that release, and in ``expected.json`` the output of
them; ``make.py`` tells how. Only the three commands are imported here, for modules may move.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cache.__main__ import main as cache
from extract.__main__ import main as extract
from train.__main__ import main as train

FIXTURE = Path(__file__).parent / "made_by_0_1_0"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))
STORE, FINISHED = Path(EXPECTED["store"]["path"]), Path(EXPECTED["finished"]["run"])
INTERRUPTED = Path(EXPECTED["interrupted"]["run"])
SOME_FAILED = 3
SAME = 1e-6
ROUNDED = 4e-3  # a stored number's last bit may fall otherwise on another processor


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A plain copy is the working folder, as the paths in the runs want it; no share is asked."""
    for name in ("data", "stores", "runs"):
        shutil.copytree(FIXTURE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEMANTICMAC_SHARES", raising=False)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file: its bytes, and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def exported(store: Path) -> dict[str, np.ndarray]:
    """The whole content of a store, through its reader."""
    assert cache(["export", str(store), "--to", "npz", "store.npz"]) == 0
    with np.load("store.npz") as file:
        arrays = dict(file)
    Path("store.npz").unlink()
    return arrays


def check_store(store: Path, tolerance: float) -> None:
    """The store has the content that the old code's reader read from the old store."""
    found, expected = exported(store), EXPECTED["store"]
    for column in ("ids", "status", "error"):
        assert found[column].tolist() == expected["table"][column]
    assert found["duration"].tolist() == pytest.approx(expected["table"]["duration"])
    for modality in ("audio", "vision"):
        assert found[f"{modality}/offsets"].tolist() == expected["offsets"][modality]
        first = found[f"{modality}/values"][:, :4].astype(float)
        np.testing.assert_allclose(first, expected["first"][modality], rtol=0, atol=tolerance)


def figures(metrics: dict) -> dict[str, float | None]:
    """The metrics and the history of a ``metrics.json`` without the seconds."""
    splits = ("train", "valid", "test", "trivial")
    found = {f"{split} {name}": x for split in splits for name, x in metrics[split].items()}
    for line in metrics["history"]:
        found |= {f"{line['epoch']} {name}": x for name, x in line.items() if name != "seconds"}
    return found | {name: metrics[name] for name in ("best_epoch", "best_score")}


def check_finished(run: Path, expected: dict) -> None:
    """The run's files have the content of the old code's."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert figures(metrics) == pytest.approx(figures(expected["metrics"]), abs=SAME)
    for name in ("utterances", "dropped", "reported"):
        assert metrics[name] == expected["metrics"][name]
    table = pd.read_parquet(run / "predictions.parquet")
    predictions = dict(zip(table["id"], table["prediction"], strict=True))
    assert predictions == pytest.approx(expected["predictions"], abs=SAME)


def test_the_store_is_verified_and_read(capsys):
    assert cache(["verify", str(STORE)]) == 0
    assert "every file is as published" in capsys.readouterr().out
    assert cache(["info", str(STORE)]) == 0
    check_store(STORE, tolerance=0)


def test_nothing_is_decoded_again(capsys):
    before = contents(STORE)
    assert extract(["old"]) == SOME_FAILED
    said = capsys.readouterr().out
    assert "nothing to decode" in said
    assert "u05: file is empty" in said
    assert extract(["old", "--allow-failures"]) == 0
    assert contents(STORE) == before
    assert list(STORE.parent.iterdir()) == [STORE]


def test_extracted_again_it_has_the_same_table():
    assert extract(["old", "--root", "again", "--workers", "1"]) == SOME_FAILED
    (again,) = Path("again", "old").glob("*.zarr")
    check_store(again, ROUNDED)


def test_a_finished_run_is_evaluated(capsys):
    before = contents(FINISHED)
    assert train(["evaluate", str(FINISHED), "--split", "test"]) == 0
    said = capsys.readouterr().out
    assert "note:" not in said  # it would say that manifest or store have changed
    rows = [line.split("│")[1:4] for line in said.splitlines() if "│" in line]
    assert rows == EXPECTED["finished"]["shown"]
    assert train(["fit", "--resume", str(FINISHED)]) == 0
    assert "run already finished" in capsys.readouterr().out
    assert contents(FINISHED) == before
    check_finished(FINISHED, EXPECTED["finished"])


def test_a_finished_run_predicts_videos():
    command = ["predict", str(FINISHED), "data/old/videos", "--json", "said.json"]
    assert train(command) == SOME_FAILED
    clips = json.loads(Path("said.json").read_text(encoding="utf-8"))["clips"]
    said = {clip["video"]: clip["answer"] and clip["answer"]["prediction"] for clip in clips}
    assert said == pytest.approx(EXPECTED["finished"]["said_of_clips"], abs=ROUNDED)


def test_a_killed_run_resumes_and_ends_the_same(capsys):
    assert list((INTERRUPTED / "state").iterdir())
    assert not (INTERRUPTED / "metrics.json").exists()
    assert train(["fit", "--resume", str(INTERRUPTED)]) == 0
    assert "resumes in epoch 3 after 1 steps" in capsys.readouterr().out
    assert not (INTERRUPTED / "state").exists()
    check_finished(INTERRUPTED, EXPECTED["interrupted"])


def test_a_study_trains_nothing_again(capsys):
    runs = Path("runs/old/audio")
    before = contents(runs)
    table = pd.read_csv("runs/old/studies/seeds/table.csv")
    assert train(["fit", *EXPECTED["keys"], "seeds=1,2"]) == 0
    said = capsys.readouterr().out
    assert said.count("(trained ") == 2  # before, or by other code
    assert contents(runs) == before
    pd.testing.assert_frame_equal(pd.read_csv("runs/old/studies/seeds/table.csv"), table)


def test_runs_are_compared(capsys):
    assert train(["compare", *EXPECTED["study"], "--resamples", "10"]) == 0
    assert "MAE" in capsys.readouterr().out
