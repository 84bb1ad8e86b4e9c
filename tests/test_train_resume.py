"""A run that is interrupted at any moment and resumed ends as without the interruption."""

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
    """A run without interruption."""
    return begin(place, forks, [*RUN, "name=whole"])


def begin(place, forks, command, stop=None, status=0):
    before = set(place.glob("runs/*/*/*"))
    ((code, output),) = forks(command, stop=stop)
    assert code == status, output
    (folder,) = set(place.glob("runs/*/*/*")) - before
    return folder


def resume(forks, folder, stop=None):
    ((code, output),) = forks(["fit", "--resume", str(folder)], stop=stop)
    return code, output


def contents(folder):
    """Everything that a run writes except seconds: bytes of the weights, predictions, history."""
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
        code, output = resume(forks, folder, kill)
        assert code == -signal.SIGKILL, (kill, output)
        assert not (folder / "metrics.json").exists()
    code, output = resume(forks, folder)
    assert code == 0, output
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
    code, output = resume(forks, folder)
    assert code == 0, output
    assert contents(folder) == contents(whole)


def test_every_state_is_complete_and_deleted_at_the_end(place, forks, whole):
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


def test_ctrl_c_saves_a_state_that_resumes(place, forks, whole):
    stop = ("AdamW.step", 10, signal.SIGINT)
    folder = begin(place, forks, [*RUN, "train.save_every=0", "name=stopped"], stop, status=130)
    (state,) = folder.glob("state/*")
    assert state.name == "00002-00000004"
    code, output = resume(forks, folder)
    assert code == 0
    assert "resumes in epoch 2 after 4 steps" in output
    assert contents(folder) == contents(whole)


def test_ctrl_c_in_the_last_validation_ends_the_run_too(place, forks, whole):
    stop = ("predict", 3, signal.SIGINT)
    folder = begin(place, forks, [*RUN, "name=late"], stop, status=130)
    (state,) = folder.glob("state/*")
    assert state.name == "00004-00000000"
    assert resume(forks, folder)[0] == 0
    assert contents(folder) == contents(whole)


def test_resuming_a_finished_run_shows_its_results(place, forks, whole):
    code, output = resume(forks, whole)
    assert code == 0
    assert "already finished" in output
    mae = json.loads((whole / "metrics.json").read_text())["test"]["MAE"]
    assert f"{mae:.3f}" in output


def test_a_run_resumes_with_its_own_data_only(place, forks):
    stop = ("AdamW.step", 8, signal.SIGKILL)
    folder = begin(place, forks, [*RUN, "name=other"], stop, status=-signal.SIGKILL)
    environment = json.loads((folder / "environment.json").read_text())
    environment["manifest_digest"] = "0" * 64
    (folder / "environment.json").write_text(json.dumps(environment))
    code, output = resume(forks, folder)
    assert code == 1
    assert "cannot be resumed: manifest_digest is" in output


def test_resume_takes_a_run_and_nothing_else(place, forks, whole):
    for words in (["fit"], ["fit", "--resume", str(whole), "seed=2"]):
        ((code, output),) = forks(words)
        assert code == 2
        assert "--resume RUN" in output
    ((code, output),) = forks(["fit", "--resume", str(Path("runs"))])
    assert code == 1
    assert "is not the folder of a run" in output
