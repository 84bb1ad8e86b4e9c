"""The paper's ablations (its table X), each one key of the configuration."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

# What is left out or changed, by name: its key, and what that means.
ABLATIONS = {
    "full": ("", "SemanticMAC as it is"),
    "no-frame-embedding": ("perceiver.frame_embedding=false", "Perceiver: frames have no place"),
    "no-layer-norm": ("perceiver.layer_norm=false", "Perceiver: no layer norm"),
    "no-residual": ("perceiver.residual=false", "Perceiver: no residual connections"),
    "no-modality-embedding": ("sgfi.modality_embedding=false", "SGFI: modalities look alike"),
    "full-heads": ("sgfi.multi_query=false", "SGFI: a key and a value per head"),
    "no-bridge": ("sgfi.bridge_tokens=0", "SGFI: plain cross-attention"),
    "no-gate": ("sgfi.gate=none", "SGFI: no gated ReLU"),
    "no-momentum": ("sclg.momentum=false", "SCLG: labels of the last epoch alone"),
    "true-labels": ("sclg.enabled=false", "SCLG: sub-tasks learn the ground truth"),
    "no-multi-task": ("loss.multi_task=false", "the multimodal sub-task alone"),
    "no-intra": ("sccl.alpha=0", "SCCL: no intra-sample term"),
    "no-inter": ("sccl.beta=0", "SCCL: no inter-sample term"),
    "no-contrast": ("sccl.enabled=false", "SCCL: neither term"),
    "5-frames": ("perceiver.frames=5", "5 frames per video (table XII)"),
    "100-frames": ("perceiver.frames=100", "100 frames per video (table XII)"),
}


def add_commands(commands: Any) -> None:
    """Register ``ablations``."""
    parser = commands.add_parser(
        "ablations",
        help="train the paper's ablations and put them in one table",
        description="Train SemanticMAC with one part left out at a time. Run it again after an "
        "interruption: what is trained is not trained again. The table is printed, and written "
        "as Markdown, LaTeX and CSV below runs/DATASET/studies/ablations.",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="dataset=NAME, seeds=COUNT or seeds=1,2,3 (default 1), ablations=NAME,NAME (default "
        "all), and any key of the configuration",
    )
    parser.add_argument("--list", action="store_true", help="name every ablation with its key")
    parser.set_defaults(run=_ablations)


def _ablations(options: argparse.Namespace, console: Console) -> int:
    if options.list:
        console.print(_listing())
        return 0
    from train.report import quiet_transformers
    from train.study.study import Study, Variant, chosen, parse_seeds, run_study, take_key

    seeds, rest = take_key(options.overrides, "seeds")
    names, rest = take_key(rest, "ablations")
    variants = tuple(
        Variant(name, tuple(filter(None, [ABLATIONS[name][0]])))
        for name in chosen(names, list(ABLATIONS), "ablation", always="full")
    )
    quiet_transformers(console)
    study = Study("ablations", tuple(rest), variants, parse_seeds(seeds or "1"), "full")
    return 3 if run_study(study, console) else 0


def _listing() -> Table:
    table = Table()
    for column in ("name", "key", "what changes"):
        table.add_column(column, no_wrap=column != "what changes")
    for name, (key, what) in ABLATIONS.items():
        table.add_row(name, key, what)
    return table
