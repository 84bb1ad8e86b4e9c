"""Stopped at any moment and resumed, a run ends as if it had never stopped."""

import json
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from manifests import Manifest
from tests.datasets import FAST
from tests.language_models import WORDS, save_language_model

# 6 steps an epoch; dropout on, so that the random states matter.
RUN = ["fit", "dataset=scores", *FAST, "train.epochs=3", "dropout=0.2"]
RUN += ["train.save_every=4", "train.save_seconds=0"]


@pytest.fixture(scope="module")
def whole(place, forks):
    """A run that nobody disturbed."""
    return begin(place, forks, [*RUN, "name=whole"])


def begin(place, forks, command, stop=None, status=0):
    before = set(place.glob("runs/*/*/*"))
    ((code, said),) = forks(command, stop=stop)
    assert code == status, said
    (folder,) = set(place.glob("runs/*/*/*")) - before
    return folder


def resume(forks, folder, stop=None):
    ((code, said),) = forks(["fit", "--resume", str(folder)], stop=stop)
    return code, said


def contents(folder):
    """All that a run leaves, but for seconds: bytes of the weights, predictions, history."""
    weights = [(folder / name).read_bytes() for name in ("model.safetensors", "last.safetensors")]
    metrics = json.loads((folder / "metrics.json").read_text())
    history = [{k: x for k, x in line.items() if k != "seconds"} for line in metrics["history"]]
    return weights, history, pd.read_parquet(folder / "predictions.parquet").to_csv()


def test_killed_again_and_again_it_ends_bit_for_bit_the_same(place, forks, whole):
    # Anywhere in an epoch, while a state is written or put in its place, while validating.
    draw = random.Random(1)
    first = ("AdamW.step", 2, signal.SIGKILL)  # before any state
    kills = [
        ("AdamW.step", draw.randint(5, 8), signal.SIGKILL),
        ("fsync", draw.randint(1, 6), signal.SIGKILL),
        ("AdamW.step", draw.randint(3, 5), signal.SIGKILL),
        ("predict", 1, signal.SIGKILL),
        ("rename", draw.randint(2, 3), signal.SIGKILL),
        ("predict", 2, signal.SIGKILL),
    ]
    folder = begin(place, forks, [*RUN, "name=killed"], first, status=-signal.SIGKILL)
    for kill in kills:
        code, said = resume(forks, folder, kill)
        assert code == -signal.SIGKILL, (kill, said)
        assert not (folder / "metrics.json").exists()
    code, said = resume(forks, folder)
    assert code == 0, said
    assert contents(folder) == contents(whole)


def test_with_a_language_model_and_pieces_of_batches_too(place, forks):
    # Of the language model one layer learns; each step adds up two pieces; the task is a class.
    save_language_model("bert", place / "bert")
    scores = Manifest.load(place / "data" / "scores")
    words = np.random.default_rng(0).choice(WORDS, (len(scores.table), 6))
    texts = [" ".join(row[: 1 + i % 6]) for i, row in enumerate(words)]
    classes = np.where(scores.table["label"] > 0, "high", "low")
    card = replace(scores.card, task="classification", range=None, classes=["low", "high"])
    card = replace(card, unimodal=False, metrics="emotion")
    Manifest(card, scores.table.assign(text=texts, label=classes)).save(place / "data" / "classes")
    run = [*RUN, "dataset=classes", "text.source=model", "text.model=bert", "text.trainable=1"]
    run += ["train.epochs=2", "optim.lr_text=1e-3", "train.accumulate=2"]
    whole = begin(place, forks, [*run, "name=pieces"])
    stop = ("AdamW.step", 10, signal.SIGKILL)
    folder = begin(place, forks, [*run, "name=killed-pieces"], stop, status=-signal.SIGKILL)
    (state,) = folder.glob("state/*")
    assert state.name == "00002-00000002"
    code, said = resume(forks, folder)
    assert code == 0, said
    assert contents(folder) == contents(whole)


def test_every_state_is_whole_and_goes_in_the_end(place, forks, whole):
    # A rename never happens: the state before stays, nothing half-written is taken for one.
    stop = ("AdamW.step", 11, signal.SIGKILL)
    folder = begin(place, forks, [*RUN, "name=states"], stop, status=-signal.SIGKILL)
    (state,) = folder.glob("state/*")
    assert state.name == "00002-00000002"  # 8 steps done, 6 to an epoch
    assert (
        not list(folder.rglob("*.pt")) + list(folder.rglob("*.pkl")) + list(folder.rglob("*.bin"))
    )
    (folder / "state" / ".aside").mkdir()
    (folder / "state" / ".aside" / "progress.json").write_text("{")
    assert resume(forks, folder)[0] == 0
    assert contents(folder) == contents(whole)
    assert not (folder / "state").exists()


def test_ctrl_c_saves_and_says_how_to_go_on(place, forks, whole):
    stop = ("AdamW.step", 10, signal.SIGINT)
    folder = begin(place, forks, [*RUN, "train.save_every=0", "name=stopped"], stop, status=130)
    (state,) = folder.glob("state/*")
    assert state.name == "00002-00000004"
    code, said = resume(forks, folder)
    assert code == 0
    assert "resumes in epoch 2 after 4 steps" in said
    assert contents(folder) == contents(whole)


def test_ctrl_c_in_the_last_validation_ends_the_run_too(place, forks, whole):
    stop = ("predict", 3, signal.SIGINT)
    folder = begin(place, forks, [*RUN, "name=late"], stop, status=130)
    (state,) = folder.glob("state/*")
    assert state.name == "00004-00000000"
    assert resume(forks, folder)[0] == 0
    assert contents(folder) == contents(whole)


def test_a_finished_run_says_so(place, forks, whole):
    code, said = resume(forks, whole)
    assert code == 0
    assert "already finished" in said
    mae = json.loads((whole / "metrics.json").read_text())["test"]["MAE"]
    assert f"{mae:.3f}" in said


def test_a_run_goes_on_with_its_own_data_only(place, forks):
    stop = ("AdamW.step", 8, signal.SIGKILL)
    folder = begin(place, forks, [*RUN, "name=other"], stop, status=-signal.SIGKILL)
    environment = json.loads((folder / "environment.json").read_text())
    environment["manifest_digest"] = "0" * 64
    (folder / "environment.json").write_text(json.dumps(environment))
    code, said = resume(forks, folder)
    assert code == 1
    assert "cannot be resumed: manifest_digest is" in said


def test_resume_takes_a_run_and_nothing_else(place, forks, whole):
    for words in (["fit"], ["fit", "--resume", str(whole), "seed=2"]):
        ((code, said),) = forks(words)
        assert code == 2
        assert "--resume RUN" in said
    ((code, said),) = forks(["fit", "--resume", str(Path("runs"))])
    assert code == 1
    assert "is not the folder of a run" in said
