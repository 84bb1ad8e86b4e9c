"""Train a run: prepare, fit, evaluate."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, convert_to_fp32, set_seed
from torch import Tensor

from cache import FeatureStore, open_store
from cache.store.disk import atomic_write, remove_tree
from manifests import Manifest
from manifests.console import Console
from manifests.printing import preview
from train import distributed, metrics, run_folder
from train.batch_order import epoch_batches
from train.checkpoint import Checkpointer, InterruptHandler, TrainState
from train.config import Config, config_digest, load_config
from train.data import Split, load_splits, resolve
from train.loss_meter import LossMeter
from train.method import Method
from train.methods import build_method, find_method
from train.metrics import Metrics
from train.model.language_model import load_tokenizer
from train.optimizer import OptimizerStep, lr_multiplier
from train.report import headline, metrics_table, print_plain, progress
from train.task import Task


@dataclass
class Setup:
    """The configuration, data and model of a run."""

    config: Config
    accelerator: Accelerator
    manifest: Manifest
    cache: FeatureStore
    task: Task
    splits: dict[str, Split]
    method: Method

    @property
    def origin(self) -> dict[str, str]:
        """Digests of the inputs, and the device."""
        digests = {"manifest_digest": self.manifest.digest, "cache_digest": self.cache.digest}
        return {"device": str(self.accelerator.device)} | digests


def train(config: Config, console: Console, folder: Path | None = None) -> Path:
    """Train and evaluate one model, and return the run's folder.

    Args:
        config: the keys of the run.
        console: for messages and the progress bar.
        folder: of an interrupted run, which resumes from its last checkpoint; None: a new run.

    Raises:
        ValueError: inputs that do not fit together, or a loss that is not finite.
        KeyboardInterrupt: Ctrl-C; a checkpoint is saved, the message tells how to resume.
    """
    setup = prepare(config, console)
    setup.method.begin(setup.splits["train"].labels)
    if folder is None:
        origin = setup.origin | {"config_digest": config_digest(setup.config)}
        folder = run_folder.create_run(setup.config, setup.manifest.card, setup.cache, origin)
    elif changed := run_folder.provenance_changes(folder, setup.origin):
        raise ValueError(f"{folder} cannot be resumed: {'; '.join(changed)}")
    fitted = fit(setup, folder, console)
    evaluate(setup, fitted, folder)
    return folder


def resume(folder: Path, console: Console) -> Path:
    """Resume a run from its last checkpoint; a finished run is only reported.

    Raises:
        ValueError: not a run, or its manifest or store has changed.
    """
    config = load_config(folder)
    if not (folder / "metrics.json").is_file():
        return train(config, console, folder)
    print_plain(console, "run already finished; showing its results")
    return folder


def prepare(config: Config, console: Console) -> Setup:
    """Load the data and build a seeded, untrained model.

    The configuration of the result is resolved (`train.data.resolve`). With
    ``text.source=features`` no language model is loaded. Only rank 0 prints.
    """
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=config.train.cpu,
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        kwargs_handlers=[ddp],
    )
    console.quiet = console.quiet or not accelerator.is_main_process
    manifest = Manifest.load(config.dataset)
    card = manifest.card
    find_method(config)  # report wrong options before a language model is downloaded
    config = resolve(config, manifest)
    assert config.cache is not None
    store = open_store(config.cache)
    task = Task.from_card(card, config.loss.regression, tuple(config.sccl.bins))
    tokenizer = None
    if config.text.model is not None and config.text.source == "model":
        tokenizer = load_tokenizer(config.text.model)
    splits = load_splits(manifest, store, task, tokenizer, config)
    smallest = min(config.train.batch_size, len(splits["train"]))
    if accelerator.num_processes > smallest:
        many = f"{accelerator.num_processes} processes"
        raise ValueError(f"{many} are too many for a batch of {smallest} utterances: start fewer")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in splits.items())
    where = f"{store.path.name}; {accelerator.device}"
    print_plain(console, f"{card.name}: {sizes} utterances; {where}")
    for name, split in splits.items():
        if split.dropped:
            excluded = f"{len(split.dropped)} utterances without features"
            print_plain(console, f"{name}: excluded {excluded}: {preview(split.dropped)}")
        if split.tokens is not None and split.tokens.cut:
            limit = f"text.max_tokens={config.text.max_tokens}"
            print_plain(console, f"{name}: {split.tokens.cut} texts truncated to {limit}")
    set_seed(config.seed)
    method = build_method(config, task, store.widths).to(accelerator.device)
    if accelerator.process_index:
        set_seed(config.seed, device_specific=True)  # same weights, different dropout per process
    return Setup(config, accelerator, manifest, store, task, splits, method)


def fit(setup: Setup, folder: Path, console: Console) -> TrainState:
    """Train for all epochs and keep the one with the best validation score.

    Checkpoints are saved in ``folder`` (``train.save_seconds``, ``train.save_every``); training
    resumes from the newest one. A method without trainable weights runs for one epoch.

    Raises:
        ValueError: a term of the loss is not finite; names the term and the batch's utterances.
        KeyboardInterrupt: Ctrl-C; a checkpoint is saved.
    """
    config, split, method = setup.config, setup.splits["train"], setup.method
    optimizer = OptimizerStep(method, config, setup.accelerator)
    meter = LossMeter(split.ids, config.train.check_every * config.train.accumulate)
    state = Checkpointer(folder, method, optimizer, meter)
    at = state.restore() or TrainState()
    if at != TrainState():
        print_plain(console, f"{folder} resumes in epoch {at.epoch} after {at.step} steps")
    steps = len(_order(setup, 1))
    epochs = config.train.epochs if optimizer.optimizer else 1
    done = (at.epoch - 1) * steps + at.step
    with (
        run_folder.tensorboard(setup.accelerator, folder) as log,
        progress(console, epochs * steps, done) as advance,
        InterruptHandler(config.train.check_every) as interrupt,
    ):
        while not at.ends(epochs, config.train.patience):
            started = time.perf_counter() - at.elapsed
            method.train()
            for index_B in _order(setup, at.epoch)[at.step :]:
                pieces = distributed.shard(index_B, config.train.accumulate)
                parts = [split.batch(index_P) for index_P in pieces]
                terms = optimizer.step(parts, len(index_B), lr_multiplier(done, steps, config))
                for part, part_terms in zip(parts, terms, strict=True):
                    meter.update(part.index, part_terms)
                at.step, done = at.step + 1, done + 1
                at.elapsed = time.perf_counter() - started
                advance()
                stopped = interrupt.after(done)
                if stopped or (config.train.save_every and not done % config.train.save_every):
                    state.save(at)
                if stopped:
                    raise KeyboardInterrupt(f"stopped; python -m train fit --resume {folder}")
            terms_mean = meter.end_epoch()
            method.end_epoch(at.epoch)
            seconds = time.perf_counter() - started

            valid = predict(setup, "valid")
            results = evaluate_outputs(setup, "valid", valid.outputs["M"])
            score = _score(setup.task, valid.loss, results)
            best = not at.best_epoch or (score, -valid.loss) > (at.best_score, -at.best_loss)
            if best:
                at.best_epoch, at.best_score, at.best_loss = at.epoch, score, valid.loss
                state.keep_best()
            line = {f"train/{name}": value for name, value in terms_mean.items()}
            line |= {"valid/loss": valid.loss}
            line |= {f"valid/{name}": value for name, value in results.items()}
            at.history.append({"epoch": at.epoch, "seconds": round(seconds, 3), **line})
            log({**line, "rate": lr_multiplier(done - 1, steps, config)}, at.epoch)
            print_plain(
                console,
                f"epoch {at.epoch:3d}/{epochs}  train {terms_mean['total']:.4f}  "
                f"valid {valid.loss:.4f}  {headline(results)}  {seconds:.1f} s"
                + ("  best" if best else ""),
            )
            at.epoch, at.step, at.elapsed = at.epoch + 1, 0, 0.0
            state.save_if_due(at, config.train.save_seconds)
        state.save(at)
        if interrupt.asked():
            raise KeyboardInterrupt(f"stopped; python -m train fit --resume {folder}")
    state.publish()
    return at


class Predicted(NamedTuple):
    """Predictions of a split, in its order.

    Attributes:
        outputs: raw outputs ``[N, C]`` of every sub-task.
        reported: ``[N]`` per name, `Outputs.reported`.
        loss: the mean over the utterances.
    """

    outputs: dict[str, Tensor]
    reported: dict[str, Tensor]
    loss: float


@torch.inference_mode()
def predict(setup: Setup, split_name: str) -> Predicted:
    """Run the method over a split, sharded over the ranks; every rank gets all predictions."""
    split, method, device = setup.splits[split_name], setup.method, setup.accelerator.device
    method.eval()
    mine: defaultdict[tuple[str, str], list[Tensor]] = defaultdict(list)
    batches = split.in_order(setup.config.train.batch_size)
    for batch in islice(batches, distributed.rank(), None, distributed.world_size()):
        batch = batch.to(device)
        with setup.accelerator.autocast():
            out = method(batch)
        out = convert_to_fp32(out)
        mine["", "index"].append(batch.index)
        loss = setup.task.loss(out.predictions["M"], batch.labels).mean()
        mine["", "loss"].append(loss.expand(len(batch)))
        for name, output_BC in out.predictions.items():
            mine["outputs", name].append(output_BC)
        for name, value_B in out.reported.items():
            mine["reported", name].append(value_B)
    shards = distributed.all_gather({key: torch.cat(rows).cpu() for key, rows in mine.items()})
    found = {key: torch.cat([shard[key] for shard in shards if shard]) for key in shards[0]}
    back_N = found["", "index"].argsort()
    return Predicted(
        {name: rows[back_N] for (kind, name), rows in found.items() if kind == "outputs"},
        {name: rows[back_N] for (kind, name), rows in found.items() if kind == "reported"},
        float(found["", "loss"][back_N].double().mean()),
    )


def evaluate_outputs(setup: Setup, split_name: str, output_NC: Tensor) -> Metrics:
    """Compute the metrics of raw outputs on a split."""
    return _compute(setup, split_name, setup.task.scores(output_NC))


def baseline_metrics(setup: Setup, split_name: str) -> Metrics:
    """Compute the metrics of the constant baseline on a split."""
    train_NC = setup.splits["train"].labels.numpy()
    scores = setup.task.baseline(train_NC, len(setup.splits[split_name]))
    return _compute(setup, split_name, torch.from_numpy(scores))


def evaluate(setup: Setup, fitted: TrainState, folder: Path) -> None:
    """Evaluate the best weights on every split, write the run's files, and remove its checkpoint.

    The test split is read here for the first time. Its metrics are saved with those of the constant
    baseline: the mean score or the majority class of the training split.
    """
    exported = setup.method.exports()
    run_folder.load_weights(setup.method, folder)
    predicted = {name: predict(setup, name) for name in setup.splits}
    evaluated = {
        name: evaluate_outputs(setup, name, each.outputs["M"]) for name, each in predicted.items()
    }
    tables = [
        run_folder.prediction_table(
            name,
            setup.splits[name].ids,
            setup.task,
            setup.splits[name].labels,
            each.outputs,
            exported if name == "train" else {},
            each.reported,
        )
        for name, each in predicted.items()
    ]
    trivial = baseline_metrics(setup, "test")
    if setup.accelerator.is_main_process:
        table = pd.concat(tables, ignore_index=True)
        atomic_write(folder / "predictions.parquet", table.to_parquet(index=False))
        run_folder.write_json(
            folder / "metrics.json",
            {
                **evaluated,
                "trivial": trivial,
                "reported": {x: float(x_N.mean()) for x, x_N in predicted["test"].reported.items()},
                "best_epoch": fitted.best_epoch,
                "best_score": fitted.best_score,
                "utterances": {name: len(split) for name, split in setup.splits.items()},
                "dropped": {name: split.dropped for name, split in setup.splits.items()},
                "seconds": round(sum(line["seconds"] for line in fitted.history), 1),
                "history": fitted.history,
            },
        )
        remove_tree(folder / "state")
    distributed.barrier()


def evaluate_run(folder: Path, split_name: str, console: Console) -> dict[str, Metrics]:
    """Evaluate a finished run's weights again on one split, from its manifest and store.

    Raises:
        ValueError: ``folder`` is not a finished run.
    """
    setup = prepare(load_config(folder), console)
    run_folder.load_weights(setup.method, folder)
    for change in run_folder.provenance_changes(folder, setup.origin):
        print_plain(console, f"note: {change}")
    results = {
        "model": evaluate_outputs(setup, split_name, predict(setup, split_name).outputs["M"]),
        "trivial": baseline_metrics(setup, split_name),
    }
    print_plain(console, f"\n{setup.manifest.card.title}: {split_name} split, run {folder}")
    console.print(metrics_table(results))
    return results


def _compute(setup: Setup, split_name: str, scores_NC: Tensor) -> Metrics:
    task, truth_NC = setup.task, setup.splits[split_name].labels
    decided, truth = task.to_decision(scores_NC.numpy()), task.to_decision(truth_NC.numpy())
    return metrics.compute(task.metrics, decided, truth, task.classes)


def _score(task: Task, loss: float, results: Metrics) -> float:
    """Score that chooses the epoch, higher is better: weighted F1, or for regression -loss."""
    select = metrics.METRIC_SETS[task.metrics].select
    return results[select] if select else -loss


def _order(setup: Setup, epoch: int) -> list[Tensor]:
    """Batches of an epoch; those with fewer utterances than ranks are merged into the first."""
    train, lengths_N = setup.config.train, setup.splits["train"].text_lengths
    order = epoch_batches(lengths_N, train.batch_size, setup.config.seed, epoch, train.bucket)
    few = [index_B for index_B in order if len(index_B) < distributed.world_size()]
    whole = [index_B for index_B in order if len(index_B) >= distributed.world_size()]
    return [torch.cat([whole[0], *few]), *whole[1:]]
