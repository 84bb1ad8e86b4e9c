"""From a configuration to a finished run: setup -> fit -> evaluate, in this order."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from rich.console import Console
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

import cache
from cache import FeatureCache, epoch_order
from manifests import Manifest
from train import metrics, record
from train.config import Config, load_config, save_config
from train.data import Split, load_splits
from train.method import Method
from train.methods import build_method
from train.metrics import Figures
from train.optimiser import parameter_groups, rate_factor
from train.report import figures_table, headline, progress, say, some
from train.task import Task
from train.text import load_tokenizer
from train.watch import LossWatch


@dataclass
class Setup:
    """Everything that a run works with."""

    config: Config
    accelerator: Accelerator
    manifest: Manifest
    cache: FeatureCache
    task: Task
    splits: dict[str, Split]
    method: Method


@dataclass
class Fitted:
    """What training leaves.

    Attributes:
        epoch: the epoch that the validation split chose, from 1.
        score: its score there, highest best.
        weights: its weights, on the CPU.
        history: per epoch the seconds, the mean of each loss term, the validation figures.
    """

    epoch: int = 0
    score: float = -math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def train(config: Config, console: Console) -> Path:
    """Train one model, judge it, and return the run's folder.

    Raises:
        ValueError: inputs that do not fit together, or a loss that is not finite.
    """
    started = time.perf_counter()
    made = setup(config, console)
    made.method.begin(made.splits["train"].labels)
    folder = record.new_folder(config, made.manifest.card.name)
    save_config(config, folder / "config.yaml")
    record.write_json(folder / "environment.json", environment(made))
    fitted = fit(made, folder, console)
    figures = evaluate(made, fitted, folder, started)
    say(console, f"\n{made.manifest.card.title}: test split, weights of epoch {fitted.epoch}")
    console.print(figures_table(figures))
    say(console, f"run: {folder}")
    return folder


def setup(config: Config, console: Console) -> Setup:
    """Load the data and build a seeded, untrained model.

    Fills in what the configuration leaves to the dataset: ``text.model`` and ``cache``. With
    ``text.source=features`` no language model is looked for.
    """
    manifest = Manifest.load(config.dataset)
    card = manifest.card
    tokenizer = None
    if config.text.source == "model":
        config.text.model = config.text.model or card.language_model
        tokenizer = load_tokenizer(config.text.model)
    config.cache = config.cache or str(cache.find(card.name, config.stores, manifest.digest))
    features = FeatureCache.open(config.cache)
    task = Task.of(card, config.loss.regression, tuple(config.sccl.bins))
    splits = load_splits(manifest, features, task, tokenizer, config)
    accelerator = Accelerator(cpu=config.train.cpu, mixed_precision=config.train.precision)
    if accelerator.num_processes > 1:
        raise ValueError("training runs in one process: start it without `accelerate launch`")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    say(console, f"{card.name}: {sizes} utterances; {features.path.name}; {accelerator.device}")
    for name, split in splits.items():
        if split.dropped:
            left_out = f"{len(split.dropped)} utterances without features"
            say(console, f"{name}: left out {left_out}: {some(split.dropped)}")
        if split.tokens is not None and split.tokens.cut:
            limit = f"text.max_tokens={config.text.max_tokens}"
            say(console, f"{name}: {split.tokens.cut} texts cut at {limit}")
    set_seed(config.seed)
    method = build_method(config, task, features.widths).to(accelerator.device)
    return Setup(config, accelerator, manifest, features, task, splits, method)


def fit(made: Setup, folder: Path, console: Console) -> Fitted:
    """Train for all epochs; the validation split chooses the one to keep.

    Raises:
        ValueError: a term of the loss is not finite; names it and the batch's utterances.
    """
    config, split = made.config, made.splits["train"]
    accelerator = _with_log(made.accelerator, folder)
    steps = -(-len(split) // config.train.batch_size)
    method, optimiser = accelerator.prepare(
        made.method, AdamW(parameter_groups(made.method, config.optim))
    )
    rate = LambdaLR(optimiser, lambda step: rate_factor(step, steps, config))
    watch, fitted = LossWatch(split.ids, config.train.check_every), Fitted()
    with progress(console, config.train.epochs * steps) as advance:
        for epoch in range(1, config.train.epochs + 1):
            started = time.perf_counter()
            method.train()
            for index_B in _order(made, epoch):
                batch = split.batch(index_B).to(accelerator.device)
                terms = method.loss(method(batch), batch)
                watch.see(index_B, terms)
                accelerator.backward(terms["total"])
                if config.optim.clip:
                    accelerator.clip_grad_norm_(method.parameters(), config.optim.clip)
                optimiser.step()
                rate.step()
                optimiser.zero_grad()
                advance()
            terms_mean = watch.end_epoch()
            method.end_epoch(epoch)
            seconds = time.perf_counter() - started

            valid = predict(made, "valid")
            figures = judge(made, "valid", valid.outputs["M"])
            score = _score(made.task, valid.loss, figures)
            if not fitted.weights or score > fitted.score:
                fitted.epoch, fitted.score = epoch, score
                fitted.weights = record.predicting_state(made.method)
            line = {f"train/{name}": value for name, value in terms_mean.items()}
            line |= {"valid/loss": valid.loss}
            line |= {f"valid/{name}": value for name, value in figures.items()}
            fitted.history.append({"epoch": epoch, "seconds": round(seconds, 3), **line})
            accelerator.log({**line, "rate": rate.get_last_lr()[-1]}, step=epoch)
            say(
                console,
                f"epoch {epoch:3d}/{config.train.epochs}  train {terms_mean['total']:.4f}  "
                f"valid {valid.loss:.4f}  {headline(figures)}  {seconds:.1f} s"
                + ("  best" if fitted.epoch == epoch else ""),
            )
    accelerator.end_training()
    return fitted


class Predicted(NamedTuple):
    """What a method says of a split, in its order.

    Attributes:
        outputs: raw outputs ``[N, C]`` of every sub-task.
        reported: ``[N]`` per name, what the method reports beside them.
        loss: the mean over the utterances.
    """

    outputs: dict[str, Tensor]
    reported: dict[str, Tensor]
    loss: float


@torch.inference_mode()
def predict(made: Setup, split_name: str) -> Predicted:
    """Run the method over a split."""
    split, method, device = made.splits[split_name], made.method, made.accelerator.device
    method.eval()
    outputs: defaultdict[str, list[Tensor]] = defaultdict(list)
    reported: defaultdict[str, list[Tensor]] = defaultdict(list)
    places, losses = [], []
    for batch in split.in_order(made.config.train.batch_size):
        batch = batch.to(device)
        with made.accelerator.autocast():
            out = method(batch)
        losses.append(method.loss(out, batch)["total"] * len(batch))
        places.append(batch.index)
        for name, output_BC in out.predictions.items():
            outputs[name].append(output_BC.float())
        for name, value_B in out.reported.items():
            reported[name].append(value_B.float())
    back_N = torch.cat(places).argsort().cpu()
    return Predicted(
        {name: torch.cat(parts).cpu()[back_N] for name, parts in outputs.items()},
        {name: torch.cat(parts).cpu()[back_N] for name, parts in reported.items()},
        float(torch.stack(losses).sum()) / len(split),
    )


def judge(made: Setup, split_name: str, output_NC: Tensor) -> Figures:
    """The dataset's metric set for raw outputs on one split."""
    return _figures(made, split_name, made.task.scores(output_NC))


def judge_trivial(made: Setup, split_name: str) -> Figures:
    """The same figures for the predictor that knows only the training labels."""
    known = made.splits["train"].labels.numpy()
    scores = made.task.trivial(known, len(made.splits[split_name]))
    return _figures(made, split_name, torch.from_numpy(scores))


def evaluate(made: Setup, fitted: Fitted, folder: Path, started: float) -> dict[str, Figures]:
    """Judge the chosen weights on every split and write the run's files.

    The test split is read here and nowhere before. Returns its figures, beside those of the
    trivial predictor (the mean score or the majority class of the training split).
    """
    exported = made.method.exports()
    record.save_weights(fitted.weights, folder)
    made.method.load_state_dict(fitted.weights, strict=False)
    figures, tables = {}, []
    for name, split in made.splits.items():
        said = predict(made, name)
        figures[name] = judge(made, name, said.outputs["M"])
        pseudo = exported if name == "train" else {}
        tables.append(
            record.prediction_table(
                name, split.ids, made.task, split.labels, said.outputs, pseudo, said.reported
            )
        )
    trivial = judge_trivial(made, "test")
    table = pd.concat(tables, ignore_index=True)
    table.to_parquet(folder / "predictions.parquet", index=False)
    record.write_json(
        folder / "metrics.json",
        {
            **figures,
            "trivial": trivial,
            "best_epoch": fitted.epoch,
            "utterances": {name: len(split) for name, split in made.splits.items()},
            "dropped": {name: split.dropped for name, split in made.splits.items()},
            "seconds": round(time.perf_counter() - started, 1),
            "history": fitted.history,
        },
    )
    return {"model": figures["test"], "trivial": trivial}


def evaluate_run(folder: Path, split_name: str, console: Console) -> dict[str, Figures]:
    """Judge a finished run's weights again on one split, from its manifest and cache.

    Raises:
        ValueError: no finished run stands in ``folder``.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: no run is there (it would hold a config.yaml)")
    made = setup(load_config(folder / "config.yaml"), console)
    record.load_weights(made.method, folder)
    for what, then in record.read_json(folder / "environment.json").items():
        now = environment(made).get(what)
        if what.endswith("_digest") and now != then:
            say(console, f"note: {what} is {now}, the run was trained with {then}")
    figures = {
        "model": judge(made, split_name, predict(made, split_name).outputs["M"]),
        "trivial": judge_trivial(made, split_name),
    }
    say(console, f"\n{made.manifest.card.title}: {split_name} split, run {folder}")
    console.print(figures_table(figures))
    return figures


def environment(made: Setup) -> dict[str, Any]:
    """What a run was made with and from."""
    digests = {"manifest_digest": made.manifest.digest, "cache_digest": made.cache.digest}
    return record.environment(str(made.accelerator.device)) | digests


def _figures(made: Setup, split_name: str, scores_NC: Tensor) -> Figures:
    task, truth_NC = made.task, made.splits[split_name].labels
    decided, truth = task.decide(scores_NC.numpy()), task.decide(truth_NC.numpy())
    return metrics.compute(task.metrics, decided, truth, task.classes)


def _score(task: Task, loss: float, figures: Figures) -> float:
    """What chooses an epoch: the weighted F1, or for a score the loss; highest best."""
    select = metrics.METRIC_SETS[task.metrics].select
    return figures[select] if select else -loss


def _order(made: Setup, epoch: int) -> list[Tensor]:
    train, lengths_N = made.config.train, made.splits["train"].text_lengths
    return epoch_order(lengths_N, train.batch_size, made.config.seed, epoch, train.bucket)


def _with_log(accelerator: Accelerator, folder: Path) -> Accelerator:
    """Send what is logged to TensorBoard files in ``<folder>/log``."""
    accelerator.project_configuration = ProjectConfiguration(str(folder), str(folder))
    accelerator.log_with = ["tensorboard"]
    accelerator.init_trackers("log")
    return accelerator
