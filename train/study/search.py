"""Random search over sizes, temperatures and loss weights, ranked by the validation split."""

from __future__ import annotations

import argparse
import math
from operator import attrgetter
from pathlib import Path
from typing import Any

from manifests.command_line import add_command
from manifests.console import Console
from train.config import choose_config
from train.study.inputs import check_no_single_run_keys, parse_seeds, pop_key

DEFAULTS = "defaults"  # attribute of the trial with all defaults
# The values to draw from, per key of the configuration. Every list contains the default.
SPACE: dict[str, list[Any]] = {
    "width": [64, 128, 256],
    "dropout": [0.0, 0.1, 0.2, 0.3],
    "perceiver.layers": [1, 2, 3],
    "perceiver.tokens": [4, 8, 16],
    "perceiver.heads": [2, 4, 8],
    "sgfi.layers": [1, 2, 3],
    "sgfi.heads": [2, 4, 8],
    "sgfi.bridge_tokens": [2, 4, 8],
    "sclg.knn": [5, 10, 20],
    "sccl.alpha": [0.01, 0.05, 0.1, 0.5],
    "sccl.beta": [0.01, 0.05, 0.1, 0.5],
    "sccl.tau": [0.1, 0.5, 1.0],
    "sccl.tau_inter": [0.1, 0.5, 1.0],
}


def add_commands(commands: Any) -> None:
    """Register ``search``."""
    parser = add_command(
        commands,
        "search",
        _search,
        "random search over sizes, temperatures and loss weights",
        ["dataset=meld trials=50", "dataset=demo trials=20 seeds=3 width=128"],
        "Train with sizes, temperatures and loss weights drawn at random and rank the trials by "
        "the validation split; the test split is not used. Keys given on the command line are not "
        "drawn. After an interruption, the same command resumes with the next trial. The ranking "
        "is printed and written to runs/DATASET/studies/search/trials.csv; weights are deleted.",
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="dataset=NAME, trials=COUNT (default: 50, including earlier trials), seeds=COUNT "
        "(runs per trial, default: 1), and any key of the configuration",
    )


def search(overrides: list[str], trials: int, seeds: tuple[int, ...], console: Console) -> int:
    """Draw and train trials until there are ``trials``; print and write the ranking.

    The score of a trial is the criterion that selects an epoch (validation loss, or weighted F1)
    at the best epoch, averaged over the seeds. A trial that cannot be trained is reported and
    counts.

    Returns:
        The number of failed trials.

    Raises:
        ValueError: Optuna is not installed, or a key or value is wrong.
    """
    optuna = _optuna()
    import torch

    from manifests import Manifest
    from train.report import print_plain
    from train.study.study import check_single_process, made_from

    check_single_process()
    config = choose_config(overrides)
    manifest = Manifest.load(config.dataset)
    folder = Path(config.runs) / manifest.card.name / "studies" / "search"
    folder.mkdir(parents=True, exist_ok=True)
    fixed = {word.partition("=")[0] for word in overrides}
    study = optuna.create_study(
        # One Optuna study per configuration, manifest, store, seeds and fixed keys.
        study_name=f"{'-'.join(made_from(config, manifest))} seeds {seeds} of {sorted(fixed)}",
        storage=f"sqlite:///{folder / 'trials.db'}",
        load_if_exists=True,
        direction="maximize",
    )
    # The same seed would draw the first trials again after a restart.
    study.sampler = optuna.samplers.RandomSampler(seed=config.seed + len(study.trials))
    # Interrupted trials do not count.
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    if not any(DEFAULTS in trial.user_attrs for trial in ended):  # the baseline of the ranking
        defaults = {key: attrgetter(key)(config) for key in SPACE if key not in fixed}
        study.enqueue_trial(defaults, user_attrs={DEFAULTS: True})
    failed = 0
    for number in range(len(ended) + 1, trials + 1):
        trial = study.ask()
        drawn = [
            f"{key}={trial.suggest_categorical(key, values)}"
            for key, values in SPACE.items()
            if key not in fixed
        ]
        try:
            score = _score([*overrides, *drawn, f"runs={folder}"], seeds)
        except (ValueError, torch.OutOfMemoryError) as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failed += 1
            print_plain(console, f"{number}/{trials}  failed: {error}  {' '.join(drawn)}")
            continue
        study.tell(trial, score)
        print_plain(console, f"{number}/{trials}  {score:.4f}  {' '.join(drawn)}")
    _rank(study, folder, console)
    return failed


def _score(overrides: list[str], seeds: tuple[int, ...]) -> float:
    """Train once per seed and return the mean score of the best epochs."""
    from train import run_folder
    from train.fit import train

    scores = []
    for seed in seeds:
        run = train(choose_config([*overrides, f"seed={seed}"]), Console(quiet=True))
        scores.append(run_folder.read_metrics(run)["best_score"])
        for weights in run.rglob("*.safetensors"):
            weights.unlink()
    return math.fsum(scores) / len(scores)


def _rank(study: Any, folder: Path, console: Console) -> None:
    """Write all trials, best first; print the best eight and the importance of each key."""
    from optuna.importance import get_param_importances
    from rich.table import Table

    trials = study.trials_dataframe(attrs=("number", "value", "params"))
    trials = trials.dropna(subset="value").sort_values("value", ascending=False)
    trials.columns = [name.removeprefix("params_") for name in trials]
    path = folder / "trials.csv"
    trials.to_csv(path, index=False)
    weights = get_param_importances(study) if len(trials) > 3 else {}
    table = Table("key", "importance", *(f"#{n}" for n in trials["number"][:8]))
    table.add_row("score", "", *(f"{value:.4f}" for value in trials["value"][:8]))
    for key in sorted(trials.columns[2:], key=lambda key: -weights.get(key, 0)):
        cells = [str(value) for value in trials[key][:8]]
        table.add_row(key, f"{weights.get(key, math.nan):.2f}", *cells)
    ended = [trial for trial in study.trials if trial.state.is_finished()]
    defaults = [f"#{trial.number}" for trial in ended if DEFAULTS in trial.user_attrs]
    table.title = f"best trials; the defaults: {', '.join(defaults)}"
    console.print(table)
    console.print(f"search: {path}", soft_wrap=True)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError("search needs Optuna: pip install 'semanticmac[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _search(options: argparse.Namespace, console: Console) -> int:
    trials, rest = pop_key(options.overrides, "trials")
    seeds, rest = pop_key(rest, "seeds")
    if not (trials or "50").isdigit():
        raise ValueError(f"trials={trials}: use a number")
    check_no_single_run_keys(rest)
    choose_config(rest)  # errors in keys are reported before the imports below, which take seconds

    from train.report import quiet_transformers

    quiet_transformers(console)
    return 3 if search(rest, int(trials or "50"), parse_seeds(seeds or "1"), console) else 0
