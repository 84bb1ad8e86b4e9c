"""Several processes, or a batch in several pieces, train as one process does."""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from safetensors.torch import load_file

from cache import FeatureStore
from tests.datasets import FAST
from tests.forks import ROOT
from train import distributed
from train.batch_order import epoch_batches
from train.config import SCLGConfig
from train.model import neighbours
from train.model.sclg import PseudoLabels

# 48 utterances in batches of 9: shares of two processes differ, the last batch has 3.
RUN = ["fit", "dataset=scores", *FAST, "train.batch_size=9", "dropout=0", "optim.lr=2e-3"]
# Sums in another order: what float32 loses by that in 12 steps, with room.
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}


def fit(place, forks, *overrides, ranks=1, stop=None, status=0):
    """Train in ``ranks`` processes; return the run's folder and the output of each."""
    before = set(place.glob("runs/*/*/*"))
    answers = forks(*[[*RUN, *overrides]] * ranks, stop=stop)
    assert [code for code, _ in answers] == [status] * ranks, answers
    (folder,) = set(place.glob("runs/*/*/*")) - before
    return folder, [output for _, output in answers]


def curve(folder):
    history = json.loads((folder / "metrics.json").read_text())["history"]
    keys = [key for key in history[0] if key.endswith(("/total", "/inter", "/task_a", "/loss"))]
    return np.array([[line[key] for key in keys] for line in history])


@pytest.fixture(scope="module")
def alone(place, forks):
    return fit(place, forks)[0]


@pytest.fixture(scope="module")
def pair(place, forks):
    return fit(place, forks, "name=pair", ranks=2)


def test_two_processes_train_as_one(alone, pair):
    folder, _ = pair
    np.testing.assert_allclose(curve(folder), curve(alone), **TOLERANCE)
    ours, theirs = (load_file(run / "last.safetensors") for run in (folder, alone))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-3


def test_accelerate_launches_them(place, alone):
    before = set(place.glob("runs/*/*/*"))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The launcher's own --cpu starts one process only, whatever the number.
    launch = [Path(sys.executable).parent / "accelerate", "launch", "--multi_gpu"]
    launch += ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    launch += ["--dynamo_backend=no", f"--main_process_port={port}", "-m", "train"]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(place / "no-settings")}
    done = subprocess.run(
        [*launch, *RUN, "name=launched"],
        cwd=place,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = set(place.glob("runs/*/*/*")) - before
    assert done.stdout.count("run: ") == 1
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2
    np.testing.assert_allclose(curve(folder), curve(alone), **TOLERANCE)
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (folder, alone))
    assert ours["best_epoch"] == theirs["best_epoch"]
    for split in ("valid", "test"):
        assert ours[split] == pytest.approx(theirs[split], rel=2e-4, abs=2e-5)


def test_only_the_first_process_prints_and_writes(pair):
    folder, (first, second) = pair
    assert "epoch   1/2" in first
    assert second == ""
    assert len(list(folder.glob("log/**/events.*"))) == 1
    assert json.loads((folder / "environment.json").read_text())["processes"] == 2


def test_two_processes_evaluate_a_run_as_one_does(forks, pair):
    command = ["evaluate", str(pair[0]), "--split", "valid"]
    (alone,), (first, second) = forks(command), forks(command, command)
    assert alone[0] == first[0] == 0, first
    assert second == (0, "")
    assert first[1].splitlines()[1:] == alone[1].splitlines()[1:]  # the first line names the device


def test_pseudo_labels_use_the_features_of_all_processes(alone, pair):
    # Each has seen half of the utterances in an epoch: with these alone labels would go astray.
    found = [pd.read_parquet(run / "predictions.parquet") for run in (alone, pair[0])]
    for k in ("pseudo_S", "pseudo_t", "pseudo_a", "pseudo_v"):
        np.testing.assert_allclose(found[0][k], found[1][k], atol=2e-3)


def test_another_method_that_generates_labels(place, forks):
    one, _ = fit(place, forks, "method=self_mm", "train.epochs=3")
    two, _ = fit(place, forks, "method=self_mm", "train.epochs=3", ranks=2)
    np.testing.assert_allclose(curve(two), curve(one), **TOLERANCE)


def test_pieces_of_a_batch_add_up_to_it(place, forks):
    without = ["sccl.beta=0", "name=pieces"]  # the term among a batch's utterances sees a piece
    whole, pieces = (fit(place, forks, *without, f"train.accumulate={n}")[0] for n in (1, 4))
    np.testing.assert_allclose(curve(pieces), curve(whole), **TOLERANCE)
    both, _ = fit(place, forks, *without, "train.accumulate=4", ranks=2)
    np.testing.assert_allclose(curve(both), curve(whole), **TOLERANCE)


def test_weights_that_a_loss_leaves_out_do_not_hang_two_processes(place, forks):
    switches = ["loss.multi_task=false", "sccl.alpha=0", "sccl.beta=0"]
    one, _ = fit(place, forks, *switches)
    two, _ = fit(place, forks, *switches, "name=unused", ranks=2)
    np.testing.assert_allclose(curve(two), curve(one), **TOLERANCE)


def test_a_remainder_smaller_than_the_processes_joins_another_batch(place, forks):
    # 48 = 47 + 1: one utterance is nothing to share.
    folder, _ = fit(place, forks, "train.batch_size=47", "name=remainder", ranks=2)
    total = json.loads((folder / "metrics.json").read_text())["history"][0]["train/total"]
    assert np.isfinite(total)


def test_two_killed_processes_resume_as_two(place, forks):
    keys = ["train.save_every=4", "train.save_seconds=0", "dropout=0.2"]
    whole, _ = fit(place, forks, *keys, "name=whole", ranks=2)
    folder, _ = fit(
        place, forks, *keys, "name=killed", ranks=2, stop=("AdamW.step", 9, 9), status=-9
    )
    assert (folder / "state" / "00002-00000002").is_dir()
    ((code, output),) = forks(["fit", "--resume", str(folder)])
    assert code == 1
    assert "was saved by 2 processes, not 1" in output
    answers = forks(*[["fit", "--resume", str(folder)]] * 2)
    assert [code for code, _ in answers] == [0, 0], answers
    for name in ("model.safetensors", "last.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_loss_that_is_not_finite_stops_all_processes(place, forks):
    """One number of one utterance is NaN, in the share of the process that prints nothing."""
    store = place / "lost.zarr"
    shutil.copytree(place / "stores" / "scores" / "store.zarr", store)
    cache = FeatureStore.open(store)
    table = pd.read_parquet(place / "data" / "scores" / "manifest.parquet")
    ids = sorted(table.loc[table["split"] == "train", "id"])
    lengths_N = cache.select(ids, modalities=["text"]).lengths["text"]
    batch = [ids[i] for i in epoch_batches(lengths_N, 9, seed=1, epoch=1, window=100)[1]]
    row = cache.offsets("audio")[cache.ids.index(batch[3])]
    zarr.open_group(store)["audio/values"][row, 0] = np.nan

    keys = ["cache=lost.zarr", "sccl.beta=0", "name=nan"]
    _, (first, second) = fit(place, forks, *keys, ranks=2, status=1)
    assert f"'task_M' is not finite in the batch: {', '.join(batch[1::2])}\n" in first
    assert second == ""


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_searches_neighbours_for_its_share_only(count, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    truth_N1 = torch.randn(20, 1, generator=generator)
    features_1ND = torch.randn(1, 20, 4, generator=generator)
    given, nearest = [], neighbours.nearest

    def watched(features_ND, knn, rows_R, index):
        given.append(rows_R)
        return nearest(features_ND, knn, rows_R, index)

    monkeypatch.setattr(neighbours, "nearest", watched)

    def moved():
        labels = PseudoLabels(truth_N1, ["a"], 4, lambda x: x, SCLGConfig(knn=3, momentum=False))
        labels.collect(torch.arange(20), features_1ND)
        labels.update(2)
        return labels.labels[0] - truth_N1

    alone = moved()
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(moved())
    assert torch.equal(given[0], torch.arange(20))
    assert torch.equal(torch.cat(given[1:]).sort().values, torch.arange(20))
    assert max(len(rows_R) for rows_R in given[1:]) == -(-20 // count)
    torch.testing.assert_close(sum(shares), alone)  # a row that another works out stays 0


@pytest.mark.parametrize("count", [2, 3])
def test_shares_are_disjoint_and_complete(count, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    for size in range(count, 12):
        for pieces in (1, 2, 5):
            found = []
            for rank in range(count):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                found.append(distributed.shard(torch.arange(size), pieces))
            assert len({len(parts) for parts in found}) == 1
            parts = [part for parts in found for part in parts]
            assert all(len(part) for part in parts)
            assert sorted(torch.cat(parts).tolist()) == list(range(size))
