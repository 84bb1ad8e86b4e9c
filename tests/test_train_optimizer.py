"""Inputs of AdamW: rates with warm-up, a clipped gradient."""

import pytest
import torch
from rich.console import Console
from torch.optim import AdamW

from tests.datasets import FAST
from tests.language_models import save_language_model
from train.__main__ import main
from train.config import make_config
from train.fit import prepare
from train.optimizer import OptimizerStep


@pytest.fixture
def words(place, monkeypatch):
    """The keys of a run whose language model has its own rate."""
    monkeypatch.chdir(place)
    save_language_model("bert", place / "bert")
    text = ["text.source=model", "text.model=bert", "optim.lr_text=1e-3"]
    return ["dataset=scores", *FAST, "optim.lr=5e-3", *text]


@pytest.fixture
def steps(monkeypatch):
    """Of each call of AdamW: the rates and the norm of the whole gradient."""
    seen, step = [], AdamW.step

    def watched(self, *given, **named):
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        seen.append(({g["lr"] for g in self.param_groups}, float(norm)))
        return step(self, *given, **named)

    monkeypatch.setattr(AdamW, "step", watched)
    return seen


@pytest.mark.parametrize("clip", [1e-3, 0.0])
def test_one_step_takes_its_share_of_the_rates_and_a_clipped_gradient(words, steps, clip):
    config = make_config(None, [*words, f"optim.clip={clip}"])
    setup = prepare(config, Console(quiet=True))
    train = setup.splits["train"]
    setup.method.begin(train.labels)
    optimizer = OptimizerStep(setup.method.train(), config, setup.accelerator)
    pieces = torch.arange(8).split(5)  # clipped is what they add up to
    optimizer.step([train.batch(index_P) for index_P in pieces], 8, 0.5)
    ((taken, norm),) = steps
    assert sorted(taken) == pytest.approx([0.5e-3, 2.5e-3])
    if clip:
        assert norm == pytest.approx(clip, rel=1e-3)
    else:
        assert norm > 0.1


def test_a_run_warms_up_over_its_first_epoch(words, steps):
    assert main(["fit", *words]) == 0
    factors = [min(1, step / 6) for step in range(1, 13)]  # 48 utterances in batches of 8
    taken = [sorted(rates) for rates, _ in steps]
    assert taken == [pytest.approx([1e-3 * factor, 5e-3 * factor]) for factor in factors]
    assert all(norm <= 1.001 for _, norm in steps)
    assert any(norm == pytest.approx(1, rel=1e-3) for _, norm in steps)  # it did clip
