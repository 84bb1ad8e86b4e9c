"""The step benchmark: both methods train on the same batches, and a tiny run writes its report."""

import json

import pytest
import torch
from accelerate import Accelerator

from benchmarks import step
from benchmarks.generate import WIDTH
from benchmarks.training import (
    BATCH,
    FRAMES,
    TOKENS,
    LanguageModelAlone,
    make_split,
    save_language_model,
)
from manifests import Card
from train.config import make_config
from train.optimizer import OptimizerStep
from train.task import Task


def test_batches_are_as_documented_and_the_reference_learns_from_them(tmp_path):
    task = Task.from_card(Card("x", "x", "regression", range=[-3, 3]))
    split = make_split(tmp_path, BATCH, task)
    batch = split.batch(torch.arange(BATCH))
    assert batch.text.ids.shape == (BATCH, TOKENS)
    assert batch.text.mask.all()
    assert batch.audio.lengths.tolist() == batch.vision.lengths.tolist() == [FRAMES] * BATCH
    save_language_model(tmp_path / "model", "tiny")
    settings = [f"text.model={tmp_path / 'model'}", "optim.lr_text=1e-3", "optim.lr=1e-2"]
    config = make_config(None, settings)
    alone = LanguageModelAlone(config, task, {"audio": WIDTH, "vision": WIDTH})
    optimizer = OptimizerStep(alone, config, Accelerator(cpu=True))
    losses = [optimizer.step([batch], BATCH, 1.0)[0]["total"].item() for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_tiny_run_reports_shares_that_add_up(tmp_path, capsys):
    arguments = ["--size", "tiny", "--runs", "1", "--precision", "fp32", "--device", "cpu"]
    assert step.main([*arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert set(found["ratios"]) == {"tiny_vs_lm", "data_wait_share"}
    (row,) = found["rows"]
    assert found["ratios"]["tiny_vs_lm"] == pytest.approx(row["step_s"] / row["alone_s"])
    assert sum(row["parts_s"].values()) == pytest.approx(row["step_s"])
    assert "interaction" in capsys.readouterr().out


def test_only_the_default_width_in_full_precision_has_the_plain_name():
    rows = [
        {"model": "minilm", "width": w, "precision": p, "vs_lm": 1.0, "data_wait_share": 0.1 * w}
        for p in ("fp32", "bf16")
        for w in (1, 2)
    ]
    assert list(step.ratios_of(rows, 1)) == [
        "minilm_vs_lm",
        "minilm_vs_lm_width2_fp32",
        "minilm_vs_lm_width1_bf16",
        "minilm_vs_lm_width2_bf16",
        "data_wait_share",
    ]
    assert step.ratios_of(rows, 1)["data_wait_share"] == 0.2
