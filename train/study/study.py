"""Train variants of one configuration, each with several seeds, and write one table.

The runs are stored like all runs, in ``runs/<dataset>/<method>/``. A finished run with the same
configuration, manifest and store is reused, so that an interrupted study resumes. The table is
written to ``runs/<dataset>/studies/<name>/`` as ``table.md``, ``table.tex`` and ``table.csv``.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open

from cache import open_store
from manifests import Manifest
from manifests.console import Console
from train import run_folder
from train.config import Config, choose_config, config_digest, load_config
from train.data import resolve
from train.fit import train
from train.report import (
    drop_columns_to_fit,
    format_metric,
    headline,
    latex,
    markdown,
    print_plain,
    rich_table,
)
from train.study.inputs import check_no_single_run_keys
from train.study.significance import paired_p
from train.study.summary import show_run


@dataclass(frozen=True)
class Variant:
    """One row of the table: its name, and the keys by which it differs from the other rows."""

    name: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """The variants and seeds to train.

    Attributes:
        name: the study's folder in ``runs/<dataset>/studies``.
        overrides: ``key=value`` strings that all runs share, including ``dataset``.
        variants: the rows of the table.
        seeds: every variant is trained once per seed.
        reference: the variant that the others are tested against; None: no test.
    """

    name: str
    overrides: tuple[str, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    reference: str | None = None


def run_study(study: Study, console: Console, loud: bool = False) -> int:
    """Train the missing runs, write and print the table, and return the number of failed variants.

    A variant that cannot be trained is reported with the reason; the others are trained.

    Args:
        study: the variants and seeds.
        console: for messages and the table.
        loud: print the epochs and the summary of each run.

    Raises:
        ValueError: a key or a value is invalid; raised before any training.
    """
    check_single_process()
    check_no_single_run_keys(study.overrides)
    plan = [
        (variant.name, choose_config([*study.overrides, *variant.overrides, f"seed={seed}"]))
        for variant in study.variants
        for seed in study.seeds
    ]
    manifest, results = Manifest.load(plan[0][1].dataset), Path(plan[0][1].runs)
    card = manifest.card
    finished = FinishedRuns(results / card.name)
    runs: defaultdict[str, list[Path]] = defaultdict(list)
    failed: dict[str, str] = {}
    for place, (name, config) in enumerate(plan, 1):
        if name in failed:
            continue
        label = f"{place}/{len(plan)}  {name}, seed {config.seed}:"
        run = finished.find(made_from(config, manifest))
        how = "(trained before)" if run is None or same_code(run) else "(trained by other code)"
        if run is None:
            config.name = f"{study.name}-{name}-seed{config.seed}"
            try:
                run, how = _train(config, console, label, loud), ""
            except (ValueError, torch.OutOfMemoryError) as error:
                failed[name] = str(error)
                print_plain(console, f"{label}  failed: {error}")
                continue
        runs[name].append(run)
        figures = headline(run_folder.read_metrics(run)["test"])
        print_plain(console, f"{label}  {figures}  {how}".rstrip())
    folder = results / card.name / "studies" / study.name
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: folders for name, folders in runs.items() if name not in failed}
    if whole:
        table = summary(whole, study.reference, card.classes)
        title = f"{card.title}: test split, seeds {', '.join(map(str, study.seeds))}"
        cells = format_summary(table, len(study.seeds))
        table.to_csv(folder / "table.csv", index_label="variant")
        (folder / "table.md").write_text(markdown(cells), encoding="utf-8")
        (folder / "table.tex").write_text(latex(cells), encoding="utf-8")
        console.print(rich_table(drop_columns_to_fit(cells, console.width), title))
    for name, reason in failed.items():
        print_plain(console, f"failed: {name}: {reason}")
    print_plain(console, f"table: {folder / 'table.md'}, .tex, .csv")
    return len(failed)


def check_single_process() -> None:
    """Raise a ValueError unless this is the only process: a study starts runs one by one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("several runs need a single process: start them without a launcher")


Origin = tuple[str, str, str]
"""Digests of configuration, manifest and store: what a run is made from."""


class FinishedRuns:
    """The finished runs of a dataset, found by what they were made from; the latest of several.

    Args:
        folder: ``runs/<dataset>``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, origin: Origin) -> Path | None:
        """The run with this origin, or None."""
        return self._recorded.get(origin) or self._computed.get(origin)

    @cached_property
    def _recorded(self) -> dict[Origin, Path]:
        """By the digest of the configuration that a run recorded when it started."""
        return self._runs(lambda _, environment: environment.get("config_digest"))

    @cached_property
    def _computed(self) -> dict[Origin, Path]:
        """By the digest of the saved configuration: earlier releases recorded a different one."""
        return self._runs(lambda run, _: _saved_digest(run))

    def _runs(
        self, config_digest_of: Callable[[Path, dict[str, Any]], str | None]
    ) -> dict[Origin, Path]:
        runs: dict[Origin, Path] = {}
        for path in sorted(self.folder.glob("*/*/metrics.json")):
            environment = run_folder.read_json(path.with_name("environment.json"))
            digest = config_digest_of(path.parent, environment)
            if digest is not None:
                origin = digest, environment["manifest_digest"], environment["cache_digest"]
                runs[origin] = path.parent
        return runs


def _saved_digest(run: Path) -> str | None:
    try:
        return config_digest(load_config(run))
    except ValueError:
        return None  # its configuration has a key that no longer exists


def made_from(config: Config, manifest: Manifest) -> Origin:
    """The origin that a run of this configuration would have."""
    resolved = resolve(config, manifest)
    assert resolved.cache is not None
    store = open_store(resolved.cache)
    return config_digest(resolved), manifest.digest, store.digest


def same_code(run: Path) -> bool:
    """Whether a run was made by the code at hand, as far as its version and git know."""
    made = run_folder.read_json(run / "environment.json")
    return bool((made["versions"].get("semanticmac"), made["git"]) == run_folder.code_version())


def summary(
    runs: dict[str, list[Path]], reference: str | None, classes: Sequence[str] = ()
) -> pd.DataFrame:
    """Return one row per variant: mean and standard deviation of each metric of the test split.

    Columns: ``<metric>`` and ``<metric>_std`` (sample standard deviation over the seeds, NaN for
    one seed), ``parameters`` (number of weights), ``epoch_s`` (seconds per epoch) and, with a
    reference, ``p`` of the paired test over utterances of this variant's errors (averaged over the
    seeds) against the reference's. Metrics of single classes are excluded.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, folders in runs.items():
        metrics = [run_folder.read_metrics(folder) for folder in folders]
        row: dict[str, float] = {}
        for metric in metrics[0]["test"]:
            if metric.endswith(tuple(f"_{label}" for label in classes)):
                continue
            values = np.array([each["test"][metric] for each in metrics], dtype=float)
            row[metric] = values.mean()
            row[f"{metric}_std"] = values.std(ddof=1) if len(values) > 1 else math.nan
        row["parameters"] = _parameters(folders[0])
        seconds = [line["seconds"] for each in metrics for line in each["history"]]
        row["epoch_s"] = float(np.mean(seconds)) if seconds else math.nan
        if reference in runs:
            assert reference is not None
            row["p"] = math.nan if name == reference else paired_p(runs[reference], folders)
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def format_summary(table: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """Format the cells of a summary as strings: ``mean ± std``, fractions in percent."""
    cells = pd.DataFrame(index=table.index.rename("variant"))
    for metric in [str(name) for name in table if f"{name}_std" in table]:
        cells[metric] = [
            format_metric(metric, mean)
            + (f" ± {format_metric(metric, std)}" if seeds > 1 and not math.isnan(mean) else "")
            for mean, std in zip(table[metric], table[f"{metric}_std"], strict=True)
        ]
    cells["parameters"] = [f"{value / 1e6:.2f} M" for value in table["parameters"]]
    cells["s/epoch"] = [f"{value:.2f}" for value in table["epoch_s"]]
    if "p" in table:
        cells["p"] = [
            "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in table["p"]
        ]
    return cells


def _train(config: Config, console: Console, label: str, loud: bool) -> Path:
    if loud:
        run = train(config, console)
        show_run(run, console)
        return run
    with console.status(label):  # a spinner on a terminal, no output elsewhere
        return train(config, Console(quiet=True))


def _parameters(folder: Path) -> int:
    with safe_open(run_folder.weights_path(folder), framework="pt") as weights:
        return sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
