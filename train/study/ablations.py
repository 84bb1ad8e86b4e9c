"""Train the paper's ablations (its table X), each of them one key of the configuration."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from manifests.command_line import add_command
from manifests.console import Console
from train.config import choose_config
from train.study.inputs import parse_seeds, pop_key, select_names

# Per name: the key that removes or changes a part, and a description.
ABLATIONS = {
    "full": ("", "SemanticMAC, unchanged"),
    "no-frame-embedding": ("perceiver.frame_embedding=false", "Perceiver: no position of frames"),
    "no-layer-norm": ("perceiver.layer_norm=false", "Perceiver: no layer norm"),
    "no-residual": ("perceiver.residual=false", "Perceiver: no residual connections"),
    "no-modality-embedding": ("sgfi.modality_embedding=false", "SGFI: no modality embedding"),
    "full-heads": ("sgfi.multi_query=false", "SGFI: a key and a value per head"),
    "no-bridge": ("sgfi.bridge_tokens=0", "SGFI: plain cross-attention"),
    "no-gate": ("sgfi.gate=none", "SGFI: no gated ReLU"),
    "no-momentum": ("sclg.momentum=false", "SCLG: labels of the last epoch only"),
    "true-labels": ("sclg.enabled=false", "SCLG: sub-tasks train on the true label"),
    "no-multi-task": ("loss.multi_task=false", "the multimodal sub-task only"),
    "no-intra": ("sccl.alpha=0", "SCCL: no intra-sample term"),
    "no-inter": ("sccl.beta=0", "SCCL: no inter-sample term"),
    "no-contrast": ("sccl.enabled=false", "SCCL: no contrastive term"),
    "5-frames": ("perceiver.frames=5", "5 frames per video (table XII)"),
    "100-frames": ("perceiver.frames=100", "100 frames per video (table XII)"),
}


def add_commands(commands: Any) -> None:
    """Register ``ablations``."""
    parser = add_command(
        commands,
        "ablations",
        _ablations,
        "train the paper's ablations and put them in one table",
        ["dataset=meld seeds=5", "dataset=demo ablations=no-gate,no-bridge"],
        "Train SemanticMAC with one part removed at a time. After an interruption, the same "
        "command resumes: finished runs are not trained again. The table is printed and written "
        "to runs/DATASET/studies/ablations as Markdown, LaTeX and CSV.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="dataset=NAME, seeds=COUNT or seeds=1,2,3 (default: 1), ablations=NAME,NAME "
        "(default: all), and any key of the configuration",
    )
    parser.add_argument("--list", action="store_true", help="list the ablations with their keys")


def _ablations(options: argparse.Namespace, console: Console) -> int:
    if options.list:
        console.print(_listing())
        return 0
    seeds, rest = pop_key(options.overrides, "seeds")
    names, rest = pop_key(rest, "ablations")
    choose_config(rest)  # errors in keys are reported before the imports below, which take seconds

    from train.report import quiet_transformers
    from train.study.study import Study, Variant, run_study

    variants = tuple(
        Variant(name, tuple(filter(None, [ABLATIONS[name][0]])))
        for name in select_names(names, list(ABLATIONS), "ablation", always="full")
    )
    quiet_transformers(console)
    study = Study("ablations", tuple(rest), variants, parse_seeds(seeds or "1"), "full")
    return 3 if run_study(study, console) else 0


def _listing() -> Table:
    table = Table()
    for column in ("name", "key", "change"):
        table.add_column(column, no_wrap=column != "change")
    for name, (key, change) in ABLATIONS.items():
        table.add_row(name, key, change)
    return table
