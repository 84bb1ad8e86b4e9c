"""Time the training steps of a method in this process."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from benchmarks.generate import WIDTH, generate
from cache import FeatureStore
from manifests import Card
from train.config import Config, make_config
from train.data import Batch, Split
from train.method import Method, Outputs
from train.methods import build_method
from train.methods.semanticmac import SemanticMAC
from train.model.language_model import TokenizedTexts
from train.model.layers import masked_mean
from train.model.text_features import text_source
from train.optimizer import OptimizerStep
from train.task import Task

BATCH, TOKENS, FRAMES = 32, 40, 9  # FRAMES: the median of `generate`
# hidden width, layers, heads; the feed forward network is four times as wide
LANGUAGE_MODELS = {"tiny": (64, 2, 2), "minilm": (384, 6, 12), "bert_base": (768, 12, 12)}
VOCABULARY = 30522


class LanguageModelAlone(Method):
    """The reference: the mean over the language model's tokens and one linear head."""

    def __init__(self, config: Config, task: Task, widths: Mapping[str, int]) -> None:
        super().__init__(config, task, widths)
        self.text = text_source(config.text, widths)
        self.head = nn.Linear(self.text.width, task.outputs)

    def forward(self, batch: Batch) -> Outputs:
        """Predict from the text alone."""
        x_BLD, mask_BL = self.text(batch.text)
        pooled_BD = masked_mean(x_BLD, mask_BL)
        return Outputs({"M": self.head(pooled_BD)}, {"M": pooled_BD})


def compare(
    folder: Path, model: str, width: int, precision: str, device: str, threads: int, runs: int
) -> dict[str, Any]:
    """Time SemanticMAC and its language model alone, step by step in turns.

    Returns:
        ``step_s``, ``alone_s`` and ``data_wait_s``; ``vs_lm`` and ``data_wait_share``, medians of
        the ratios of neighbouring steps; ``parts_s``: the seconds of each part of the step.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    save_language_model(folder / "model", model)
    config = make_config(None, [f"width={width}", f"text.model={folder / 'model'}"])
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision="bf16" if precision == "bf16" else "no"
    )
    task = Task.from_card(Card("generated", "generated", "regression", range=[-3, 3]))
    split = make_split(folder, BATCH * (runs + 1), task)
    widths = {"audio": WIDTH, "vision": WIDTH}
    ours = Trained(build_method(config, task, widths), split, accelerator)
    alone = Trained(LanguageModelAlone(config, task, widths), split, accelerator)
    batches = torch.arange(len(split)).split(BATCH)
    for each in (ours, alone):  # the first step allocates
        each.step(batches[0])
    steps, waits, others = [], [], []
    for i, index_B in enumerate(batches[1:]):
        for each in (ours, alone) if i % 2 else (alone, ours):
            waited, took = each.step(index_B)
            if each is alone:
                others.append(took)
            else:
                waits.append(waited)
                steps.append(took)
    step_s = statistics.median(steps)
    parts_s = {name: statistics.median(times) for name, times in ours.parts(batches, runs).items()}
    parts_s["fusion, predictors, losses"] = step_s - sum(parts_s.values())
    return {
        "step_s": step_s,
        "alone_s": statistics.median(others),
        "data_wait_s": statistics.median(waits),
        "vs_lm": statistics.median(a / b for a, b in zip(steps, others, strict=True)),
        "data_wait_share": statistics.median(a / b for a, b in zip(waits, steps, strict=True)),
        "parts_s": parts_s,
    }


class Trained:
    """A method, its data and its optimizer; steps are timed.

    On one thread the seconds are CPU time, which other programs do not affect; else wall time.
    """

    def __init__(self, method: Method, split: Split, accelerator: Accelerator) -> None:
        self.method, self.split, self.accelerator = (
            method.to(accelerator.device),
            split,
            accelerator,
        )
        method.begin(split.labels)
        method.train()
        self.optimizer = OptimizerStep(method, method.config, accelerator)
        on_gpu = accelerator.device.type == "cuda"
        self._clock = process_time if torch.get_num_threads() == 1 and not on_gpu else perf_counter

    def step(self, index_B: Tensor) -> tuple[float, float]:
        """Train one step; return the seconds waited for its batch, and the total."""
        start = self._now()
        batch = self.split.batch(index_B).to(self.accelerator.device)
        waited = self._now() - start
        self.optimizer.step([batch], len(batch), 1.0)
        return waited, self._now() - start

    def parts(self, batches: tuple[Tensor, ...], runs: int) -> dict[str, list[float]]:
        """Time each part of SemanticMAC alone, on the inputs of a training step."""
        method, seconds = self.method, {}
        assert isinstance(method, SemanticMAC)
        modules: dict[str, list[nn.Module]] = {
            "language model": [method.text],
            "text projection": [method.project_text],
            "perceivers": [method.audio, method.vision],
            "interaction": [*method.specific, *method.shared],
        }
        given: dict[nn.Module, tuple[Any, ...]] = {}
        hooks = [
            module.register_forward_pre_hook(lambda m, inputs: given.update({m: inputs}))
            for some in modules.values()
            for module in some
        ]
        self.step(batches[0])
        for hook in hooks:
            hook.remove()
        for name, some in modules.items():
            seconds[name] = [sum(self._alone(m, given[m]) for m in some) for _ in range(runs)]
        seconds["clipping, optimiser"] = [self._update() for _ in range(runs)]
        return seconds

    def _alone(self, module: nn.Module, inputs: tuple[Any, ...]) -> float:
        """Time forward and backward of one module."""
        fresh = [
            x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
            for x in inputs
        ]
        start = self._now()
        with self.accelerator.autocast():
            output = module(*fresh)
        x = output[0] if isinstance(output, tuple) else output
        x.backward(torch.ones_like(x))
        return self._now() - start

    def _update(self) -> float:
        start = self._now()
        self.optimizer.update(1.0)
        seconds = self._now() - start
        for parameter in self.method.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return seconds

    def _now(self) -> float:
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        return self._clock()


def save_language_model(folder: Path, name: str) -> None:
    """Save a BERT of one of the `LANGUAGE_MODELS` sizes with random weights."""
    width, layers, heads = LANGUAGE_MODELS[name]
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    transformers_logging.disable_progress_bar()
    BertModel(config).save_pretrained(folder)


def make_split(folder: Path, utterances: int, task: Task) -> Split:
    """Generate random texts of `TOKENS` tokens, features and scores; the store is published."""
    store = FeatureStore.open(generate(folder, utterances, spread=0.0))
    random = np.random.default_rng(1)
    rows = pd.DataFrame({"id": store.ids, "label": random.uniform(-3, 3, utterances)})
    ids = torch.from_numpy(random.integers(1, VOCABULARY, utterances * TOKENS))
    offsets = torch.arange(0, utterances * TOKENS + 1, TOKENS)
    texts = TokenizedTexts(ids, None, offsets, pad_id=0, pad_type=0, pad_left=False, cut=0)
    return Split("train", rows, texts, store, task, [])
